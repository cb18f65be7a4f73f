"""The wheel: one file that runs in an empty environment, away from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
from fermi import LLM, SamplingParams
import fermi

assert fermi.__file__.startswith(sys.prefix), fermi.__file__
assert not {"torch", "transformers"} & set(sys.modules)
llm = LLM("demo", kv_cache_memory="64MiB")
messages = [{"role": "user", "content": "What is 2 + 3?"}]
chat = llm.chat(messages, SamplingParams(temperature=0, max_tokens=48), chat_template_kwargs={"enable_thinking": False})
print(chat[0].outputs[0].text)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True)
    (path,) = folder.glob("fermi_infer-*.whl")
    return path


def test_the_wheel_holds_all_of_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"fermi/py.typed", "fermi/_C.pyi", "fermi/serve.py", "fermi/demo/model/model.safetensors"} <= names
    assert any(name.startswith("fermi/_C.") and name.endswith(".so") for name in names)
    assert any(name.startswith("fermi/engine/_sampler.") and name.endswith(".so") for name in names)
    assert sum("backends/libfermi_cpu_" in name for name in names) >= 2
    assert not [name for name in names if name.endswith((".cpp", ".pyx", ".pxd", ".h"))]
    assert wheel.stat().st_size < 20 * 2**20


def test_it_generates_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FERMI", "VIRTUAL"))}
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, cwd=tmp_path, env=clean)
    done = subprocess.run(
        [python, "-c", PROGRAM], check=True, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert "5" in done.stdout
    version = [home / "bin" / "fermi", "--version"]
    shown = subprocess.run(version, check=True, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, encoding="utf-8")
    assert wheel.name.split("-")[1] in shown.stdout
