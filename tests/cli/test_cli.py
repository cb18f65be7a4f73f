"""The command line: help that misses nothing, errors of one line, one-shot replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermi import serve
from fermi.cli import COMMANDS, command, main
from fermi.cli.reply import stream_reply
from fermi.config import known_settings, load_settings
from fermi.errors import DeadlineError
from fermi.loader import load
from fermi.sampling_params import SamplingParams


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine is seen."""
    monkeypatch.chdir(tmp_path)
    for info in known_settings():
        for name in (*info.env, *info.nested_env):
            monkeypatch.delenv(name, raising=False)


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"{name} " in shown
        assert command(name).HELP.split(";")[0][:40] in " ".join(shown.split())


def test_help_of_serve_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for info in known_settings():
        if info.section not in ("cli", "grpc"):
            assert all(part in shown for flag in info.flags for part in flag.split("/")), info.name
            assert (info.env or info.nested_env)[0] in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys, "--version").startswith("fermi 0.")


def test_print_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERMI_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    arguments = ["--model", "a", "--model", "b=c", "--port", "81", "--no-prefix-cache", "--online", "--api-key", "k"]
    shown = output_of(capsys, "serve", "--print-config", *arguments)
    rows = {row.split()[0]: " ".join(row.split()[1:]) for row in shown.splitlines()}
    assert rows["engine.threads"] == "3 environment FERMI_THREADS"
    assert rows["model.id"] == "a flag --model"
    assert rows["model.also"] == "('b=c',) flag --also"
    assert rows["openai.addr"] == "0.0.0.0:81 flag --port"
    assert rows["engine.prefix_cache"] == "False flag --prefix-cache"
    assert rows["model.offline"] == "False flag --offline/--online"
    assert rows["engine.block_size"] == "16 default"
    assert rows["model.token"] == "*** environment HF_TOKEN"
    assert rows["openai.api_keys"] == "*** flag --api-key"
    assert "hf_secret" not in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--config", "gone.toml"], "gone.toml does not exist"),
        (["serve", "--threads", "many"], "flag --threads: engine.threads: "),
        (["serve", "--addr", "nowhere"], "'nowhere' is not an address"),
        (["generate", "x", "--model", "./gone"], "there is no folder ./gone"),
        (["chat", "x", "--model", "gone/gone", "--offline", "--hub-dir", "cache"], "is not in the cache"),
        (["generate", "x", "--model", "demo", "--device", "abacus"], "abacus"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    shown = output_of(capsys, *arguments, code=1)
    assert shown.startswith("fermi: ")
    assert complaint in shown
    assert shown.count("\n") == 1


def test_the_module_is_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--print-config", "--model", "demo"]) == 0
    assert "demo" in capsys.readouterr().out


def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    reply = output_of(capsys, "chat", "What is 3 + 4?", "--model", "demo", "--temperature", "0", "--threads", "1")
    assert "7" in reply


def test_chat_reads_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["What is 3 + 4?", "", "What is 1 + 1?"])

    def read(prompt: str = "") -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    shown = output_of(capsys, "chat", "--model", "demo", "--temperature", "0", "--threads", "1")
    assert len(shown.splitlines()) >= 2


def test_generate(capsys: pytest.CaptureFixture[str], stories260k: Path) -> None:
    arguments = ["generate", "Once upon a time", "--model", str(stories260k), "--temperature", "0", "--max-tokens", "8"]
    shown = output_of(capsys, *arguments, "--threads", "1")
    assert shown == output_of(capsys, *arguments, "--threads", "1")
    assert shown.strip()


def test_timeout() -> None:
    loaded = load("demo", load_settings({"engine.threads": 1}, environ={}))
    with pytest.raises(DeadlineError, match="raise --timeout-ms"):  # a deadline that is over already
        list(stream_reply(loaded, [5, 6, 7], SamplingParams(max_tokens=5), timeout_ms=-1))
    assert not loaded.engine.has_work


def test_leaving_a_reply_frees_the_engine() -> None:
    loaded = load("demo", load_settings({"engine.threads": 1}, environ={}))
    reply = stream_reply(loaded, [5, 6, 7], SamplingParams(max_tokens=500, ignore_eos=True), timeout_ms=0)
    next(reply)
    reply.close()  # type: ignore[attr-defined]
    assert not loaded.engine.has_work
    assert loaded.engine.stats().blocks.used == 0
