"""The arrows of the C++ side: the core includes no backend and no bindings, backends never each other.

The arrows of the Python side are contracts in pyproject.toml, checked by ``lint-imports``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {".cpp", ".h", ".cu", ".cuh", ".mm", ".metal"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)

# folder → what its files may include, beside their own folder
ALLOWED = {
    "csrc": (),
    "csrc/bindings": ("csrc",),
    "csrc/cpu": ("csrc",),
    "cuda": ("csrc",),
    "metal": ("csrc",),
}


def part_of(path: Path) -> str:
    """The longest folder of ALLOWED that holds the path."""
    relative = path.relative_to(ROOT).as_posix()
    return max((part for part in ALLOWED if relative.startswith(part + "/")), key=len, default="")


def sources() -> list[Path]:
    folders = ("csrc", "cuda", "metal")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES)


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_includes_follow_the_arrows(source: Path) -> None:
    part = part_of(source)
    for name in INCLUDE.findall(source.read_text(encoding="utf-8")):
        found = [each for each in (source.parent / name, ROOT / "csrc" / name, ROOT / name) if each.is_file()]
        assert found, f'{source.relative_to(ROOT)} includes "{name}", which is not in the repository'
        target = part_of(found[0].resolve())
        assert target == part or target in ALLOWED[part], f"{part} must not include {target} ({name})"


def test_only_models_and_what_runs_them_know_tensors() -> None:
    package = ROOT / "python" / "fermi"
    users = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            if "_C" in names or "fermi._C" in names or module == "fermi._C":
                users.add(path.relative_to(package).as_posix())
    allowed = {"__init__.py", "loader.py", "engine/batch.py", "engine/runner.py"}
    assert {user for user in users if not user.startswith(("models/", "quantization/"))} == allowed


def test_intrinsics_stand_in_one_place() -> None:
    headers = re.compile(r"#\s*include\s+<(immintrin|arm_neon|x86intrin)\.h>")
    users = {path.relative_to(ROOT).as_posix() for path in sources() if headers.search(path.read_text("utf-8"))}
    assert users
    assert {user for user in users if not user.startswith("csrc/cpu/simd")} == set()
