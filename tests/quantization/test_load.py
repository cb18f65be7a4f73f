"""Quantized models as users open them: a folder of packed weights, or packed while it loads."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from fermi import LLM, SamplingParams
from fermi.cli import main
from fermi.config import load_settings
from fermi.demo import model_folder
from fermi.errors import ConfigError
from fermi.server.loading import load_served
from server.running import serving
from tiny_embedders import save_decoder

GREEDY = SamplingParams(temperature=0, max_tokens=24)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4, as the command line makes it."""
    made = tmp_path_factory.mktemp("models") / "demo-int4"
    arguments = ["--format", "int4", "--group", "32", "--calibrate", "none", "--threads", "2", "-o", str(made)]
    assert main(["quantize", "demo", *arguments]) == 0
    return made


def reply(llm: LLM) -> list[int]:
    return llm.chat(QUESTION, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def test_a_folder_generates(folder: Path) -> None:
    llm, again = LLM(folder, threads=1), LLM(folder, threads=2)
    assert len(reply(llm)) == 24
    assert reply(llm) == reply(again)
    prompts = ["The", "What is 3 + 4?", "A story"]
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].text for prompt in prompts]
    assert [output.outputs[0].text for output in llm.generate(prompts, GREEDY, use_tqdm=False)] == alone


def test_a_folder_is_served(folder: Path) -> None:
    served = load_served(f"tiny={folder}", load_settings({"engine.threads": 1}, environ={}, folder=folder))
    no_thoughts = {"enable_thinking": False}
    expected = LLM(folder, threads=1).chat(QUESTION, GREEDY, chat_template_kwargs=no_thoughts, use_tqdm=False)
    with serving(served) as server:
        completion = server.openai().chat.completions.create(
            model="tiny",
            messages=QUESTION,
            temperature=0,
            max_tokens=24,  # type: ignore[arg-type]
        )
    assert completion.choices[0].message.content == expected[0].outputs[0].text
    assert "int4" in served.facts["format"]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_packing_while_loading(quantization: str, tmp_path: Path) -> None:
    """With and without the cache: the same weights. The second time they are mapped from there."""
    in_memory = LLM("demo", quantization=quantization, quantization_cache=False, threads=2)
    assert not list(tmp_path.iterdir())
    kept = LLM("demo", quantization=quantization, quantization_dir=tmp_path, threads=2)
    [cached] = tmp_path.iterdir()
    written = (cached / "model.safetensors").stat()
    mapped = LLM("demo", quantization=quantization, quantization_dir=tmp_path, threads=2)
    assert (cached / "model.safetensors").stat() == written
    tokens = in_memory.tokenizer.encode("The quick brown fox")
    expected = in_memory.logits(tokens)
    for llm in (kept, mapped):
        np.testing.assert_array_equal(llm.logits(tokens), expected)
    dense = LLM("demo", threads=2).logits(tokens)
    assert 0 < np.abs(expected - dense).max() < 0.5 * np.abs(dense).max()
    assert f'"format": "{quantization}"' in (cached / "config.json").read_text()


def test_the_cache_knows_what_it_was_made_of(tmp_path: Path) -> None:
    source, cache = tmp_path / "model", tmp_path / "cache"
    source.mkdir()
    for path in model_folder().iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    for quantization in ("int8", "int4"):
        LLM(source, quantization=quantization, quantization_dir=cache, threads=1)
    before = sorted(path.name for path in cache.iterdir())
    os.utime(source / "model.safetensors", ns=(1, 1))
    LLM(source, quantization="int8", quantization_dir=cache, threads=1)
    after = sorted(path.name for path in cache.iterdir())
    assert len(before) == len(after) == 2  # what is outdated has gone
    assert len(set(before) & set(after)) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        llm = LLM("demo", quantization="int8", quantization_dir=tmp_path / "file" / "cache", threads=1)
    assert "the quantized weights cannot be kept in" in caplog.text
    assert len(reply(llm)) == 24


def test_a_quantized_folder_is_not_quantized_otherwise(folder: Path) -> None:
    assert len(reply(LLM(folder, quantization="int4", threads=1))) == 24
    with pytest.raises(ConfigError, match=r"engine\.quantization: .* is quantized to int4 already, not to int8"):
        LLM(folder, quantization="int8", threads=1)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantization"):
        LLM("demo", quantization="int3")


def test_models_that_embed_are_not_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Not even those that are decoders: their pooling stands in folders of its own, and would stay behind."""
    save_decoder(tmp_path / "decoder")
    modules = [Transformer(str(tmp_path / "decoder")), Pooling(32, "lasttoken")]
    embedder = SentenceTransformer(modules=modules, device="cpu")
    embedder.save(str(tmp_path / "embedder"))
    config = json.loads((tmp_path / "decoder" / "config.json").read_text())  # as Qwen3-Embedding's
    (tmp_path / "embedder" / "config.json").write_text(json.dumps(config))
    arguments = ["--format", "int8", "-o", str(tmp_path / "packed")]
    assert main(["quantize", str(tmp_path / "embedder"), *arguments]) == 1
    assert "pack it while it loads, by quantization='int8'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "embedder"]


def test_the_command_line_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 20)
    made = tmp_path / "made"
    arguments = ["quantize", "demo", "--format", "int8", "-o", str(made), "--calibrate", str(text), "--threads", "1"]
    assert main(arguments) == 0
    assert f"{made}: 29 matrices, 3.7 MB → 1.9 MB in" in capsys.readouterr().out
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"fermi: {made} exists already\n"
    assert main([*arguments[:4], "-o", str(tmp_path / "x"), "--calibrate", str(tmp_path / "nothing")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert json.loads((made / "config.json").read_text())["quantization_config"]["format"] == "int8"


def test_the_command_line_evaluates(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 40)
    assert main(["evaluate", str(folder), "--against", "demo", "--text", str(text), "--threads", "1"]) == 0
    table = capsys.readouterr().out
    assert "perplexity" in table
    assert "demo, float32" in table
    assert main(["evaluate", "demo", "--tokens", "300", "--threads", "1", "--dtype", "float32"]) == 0
    same = capsys.readouterr().out
    assert "(+0.00 %)" in same
    assert "same next token  100.00 %" in same
    assert main(["evaluate", str(folder)]) == 1
    assert "name by --against the model that it was made of" in capsys.readouterr().err
