"""``fermi bench``: what it prints and writes, and that its cases are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fermi import _C
from fermi.bench.case import Case, cases
from fermi.bench.own_blocks import OwnBlocks
from fermi.cli import main
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.scheduler import Scheduler
from fermi.engine.sequence import Request
from fermi.models import Model, random_model

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "vocab_size": 97,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


#: Of two groups of layers.
SLIDING = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
ALTERNATING = {**CONFIG, "model_type": "qwen2", **SLIDING}


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(CONFIG, backend=_C.open_backend("cpu", threads=1), dtype="f32")


@pytest.fixture(scope="module")
def alternating() -> Model:
    return random_model(ALTERNATING, backend=_C.open_backend("cpu", threads=1), dtype="f32")


def engine_of(model: Model, scheduler: type[Scheduler] = Scheduler) -> Engine:
    return Engine(model, EngineConfig(kv_cache_memory=1 << 22, block_size=16), scheduler=scheduler)


def test_measures_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "24", "--context", "0,33", "--batch", "1,2", "--repeats", "1", "--threads", "1"]
    assert main(["bench", "demo", *flags, "--json", str(tmp_path / "figures.json")]) == 0
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "figures.json").read_text())
    assert (document["model"], document["weights"]) == ("demo", "bf16")
    figures = {(row["phase"], row["tokens"], row["batch"]): row for row in document["cases"]}
    assert list(figures) == [
        ("prefill", 24, 1),
        ("decode", 0, 1),
        ("decode", 0, 2),
        ("decode", 33, 1),
        ("decode", 33, 2),
    ]
    for row in document["cases"]:
        tokens = row["tokens"] if row["phase"] == "prefill" else row["batch"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"])
        assert row["share_of_read"] == pytest.approx(row["bytes"] / row["seconds"] / row["read_bytes_per_second"])
        assert row["bytes"] > 0.5 * document["weight_bytes"]
        assert row["tokens_sha256"] in out
    assert figures["decode", 33, 1]["tokens_sha256"] != figures["decode", 0, 1]["tokens_sha256"]
    assert document["kv_cache_bytes"] > 0
    assert document["private_bytes"] > 0


def test_says_why_a_case_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "8,100000", "--context", "0", "--batch", "1", "--repeats", "1"]
    assert main(["bench", "demo", *flags, "--json", str(tmp_path / "figures.json")]) == 0
    assert "prefill 100000" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "figures.json").read_text())["cases"]) == 2


@pytest.mark.parametrize("flags", [["--prompt", "x"], ["--batch", "1,"], ["--context=-1"], ["--batch", "0"]])
def test_refuses_what_are_no_numbers(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "demo", *flags])
    assert flags[0].partition("=")[0] in capsys.readouterr().err


def test_cases() -> None:
    assert list(cases([5], [0, 7], [1, 2])) == [
        Case("prefill", 5),
        Case("decode", 0, 1),
        Case("decode", 0, 2),
        Case("decode", 7, 1),
        Case("decode", 7, 2),
    ]


@pytest.mark.parametrize("length", [1, 15, 16, 40, 48])
@pytest.mark.parametrize("kind", ["model", "alternating"])
def test_sequences_have_blocks_of_their_own_and_the_same_tokens(
    kind: str, length: int, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(kind)
    prompt = [(7 * i) % 97 for i in range(length)]
    sampling = Sampling(max_tokens=20, temperature=0.0)
    tokens = {}
    for scheduler in (Scheduler, OwnBlocks):
        engine = engine_of(model, scheduler)
        drawn: dict[str, list[int]] = {}
        for turn in ("first", "second", "third"):
            engine.add(Request(id=turn, prompt_token_ids=prompt, sampling=sampling))
            steps = 25 if turn == "first" else 0  # the others decode together
            while engine.has_work and (steps > 0 or turn == "third"):
                steps -= 1
                for event in engine.step():
                    drawn.setdefault(event.request_id, []).extend(event.token_ids)
                if scheduler is OwnBlocks:
                    pool = engine._scheduler.pool
                    assert all(pool.references(block) <= 1 for block in range(pool.total))
        tokens[scheduler] = drawn
    assert tokens[OwnBlocks] == tokens[Scheduler]
    assert len(set(map(tuple, tokens[OwnBlocks].values()))) == 1


def test_costs_count_weights_once_and_each_context(model: Model) -> None:
    engine = engine_of(model)
    alone, computed = engine.cost(1, 1, 0)
    head = 4 * 97 * 32
    embedding = head  # of which one row is read
    assert model.weight_bytes - embedding < alone < model.weight_bytes + 16 * 1024
    assert computed > 2 * (model.parameters - 97 * 32)
    per_token = model.kv_spec.bytes_per_token
    further = engine.cost(1, 1, 160)[0]
    assert further - alone == pytest.approx(160 * per_token, abs=64)  # and a longer block table
    assert engine.cost(4, 1, 160)[0] - further > 3 * 160 * per_token
    assert engine.cost(1, 100, 0)[1] > 50 * computed
