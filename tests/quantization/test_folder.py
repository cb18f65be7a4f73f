"""From one folder to another: what is packed, what stays, and that it is all there or not there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fermi import _C
from fermi.errors import CheckpointError, ConfigError, UnsupportedModelError
from fermi.models import load_model
from fermi.quantization import Packer, Recipe, quantize_folder
from fermi.quantization.tensor_file import Entry, TensorFile
from models.drive import Driver
from ops import reference

RECIPES = [
    Recipe(format="int8"),
    Recipe(format="int8", group=32, head="keep"),
    Recipe(format="int4"),
    Recipe(format="int4", group=32, symmetric=False, head="int4"),
    Recipe(format="int4", group=128, embeddings="keep", candidates=1),
    Recipe(format="int4", group=0, head="keep", embeddings="int8"),
]
TOKENS = [3, 1, 200, 40, 5, 249, 0, 17]


def quantized(source: Path, recipe: Recipe, backend: _C.Backend, **options: int) -> Path:
    destination = source.parent / "quantized"
    quantize_folder(source, destination, recipe, backend=backend, progress=False, **options)
    return destination


def dequantized(weight: _C.Weight) -> np.ndarray:
    return weight.data.float32() if weight.format == "dense" else reference.unpack(weight).dequantized()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_folder_holds_what_packing_at_load_gives(untied: Path, recipe: Recipe, backend: _C.Backend) -> None:
    there = load_model(quantized(untied, recipe, backend), backend=backend)
    at_load = load_model(untied, backend=backend, transform=Packer(recipe, backend=backend))
    dense = load_model(untied, backend=backend)
    pairs = [
        (there.head.weight, at_load.head.weight, dense.head.weight),
        (there.embedding.table, at_load.embedding.table, dense.embedding.table),
        *zip(
            there.blocks[1].mlp.up.weights,
            at_load.blocks[1].mlp.up.weights,
            dense.blocks[1].mlp.up.weights,
            strict=True,
        ),
        (
            there.blocks[0].mlp.down.weights[0],
            at_load.blocks[0].mlp.down.weights[0],
            dense.blocks[0].mlp.down.weights[0],
        ),
    ]
    for stored, packed, original in pairs:
        assert (stored.format, stored.shape, stored.group) == (packed.format, packed.shape, packed.group)
        np.testing.assert_array_equal(dequantized(stored), dequantized(packed))
        assert np.abs(dequantized(stored) - original.data.float32()).max() < 0.2 * original.data.float32().std() * 4
    np.testing.assert_array_equal(Driver(there).logits(TOKENS), Driver(at_load).logits(TOKENS))
    assert there.parameters == dense.parameters
    assert there.weight_bytes == at_load.weight_bytes < 0.6 * dense.weight_bytes
    assert (there.dtype, there.kv_spec.dtype) == ("f32", "f32")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_roles(untied: Path, recipe: Recipe, backend: _C.Backend) -> None:
    folder = quantized(untied, recipe, backend)
    model = load_model(folder, backend=backend)
    embeddings = recipe.embeddings or recipe.head
    assert model.head.weight.format == ("dense" if recipe.head == "keep" else recipe.head)
    assert model.embedding.table.format == ("dense" if embeddings == "keep" else embeddings)
    assert {weight.format for weight in model.blocks[0].attention.qkv.weights} == {recipe.format}
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == recipe.config().to_json()
    names = load_file(folder / "model.safetensors")
    assert names["model.norm.weight"].dtype == np.float32
    assert ("model.layers.0.mlp.up_proj.weight.zeros" in names) == (recipe.symmetric is False)


def test_a_tied_table_stays_one(tied: Path, backend: _C.Backend) -> None:
    folder = quantized(tied, Recipe(format="int4"), backend)
    model = load_model(folder, backend=backend)
    assert model.head.weight.data.address == model.embedding.table.data.address
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize(("head", "embeddings"), [("int8", "keep"), ("int4", "int8"), ("keep", "int4")])
def test_a_tied_table_is_parted_where_it_must(tied: Path, head: str, embeddings: str, backend: _C.Backend) -> None:
    recipe = Recipe(format="int4", head=head, embeddings=embeddings)  # type: ignore[arg-type]
    folder = quantized(tied, recipe, backend)
    model, dense = load_model(folder, backend=backend), load_model(tied, backend=backend)
    assert model.head.weight.format == ("dense" if head == "keep" else head)
    assert model.embedding.table.format == ("dense" if embeddings == "keep" else embeddings)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    for weight in (model.head.weight, model.embedding.table):
        assert np.abs(dequantized(weight) - dense.head.weight.data.float32()).max() < 0.1


def test_nothing_is_copied(untied: Path, backend: _C.Backend) -> None:
    """Every part of a packed matrix lies in the mapping of the file, at multiples of 64 where it matters."""
    folder = quantized(untied, Recipe(format="int4", group=32, symmetric=False), backend)
    model = load_model(folder, backend=backend)
    file = str((folder / "model.safetensors").resolve())
    spans = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(file)
    ]
    assert spans
    weights = [model.head.weight, model.embedding.table, *model.blocks[0].attention.qkv.weights]
    for weight in weights:
        for part in (weight.data, weight.scales, weight.zeros):
            if part is not None:
                assert any(start <= part.address and part.address + part.nbytes <= end for start, end in spans)
        assert weight.data.address % 64 == 0
        assert weight.scales is not None
        assert weight.scales.address % 32 == 0


def test_shards(untied: Path, backend: _C.Backend) -> None:
    recipe = Recipe(format="int4", group=32)
    folder = quantized(untied, recipe, backend, shard_bytes=20_000)
    assert len(list(folder.glob("model-0*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    sharded = Driver(load_model(folder, backend=backend)).logits(TOKENS)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(
        Driver(load_model(quantized(untied, recipe, backend), backend=backend)).logits(TOKENS), sharded
    )


def test_the_same_bytes_whatever_the_threads(untied: Path) -> None:
    files = []
    for threads in (1, 3):
        folder = quantized(untied, Recipe(format="int4"), _C.open_backend("cpu", threads=threads))
        files.append((folder / "model.safetensors").read_bytes())
        shutil.rmtree(folder)
    assert files[0] == files[1]


def test_companions_come_along(untied: Path, backend: _C.Backend) -> None:
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "LICENSE", "pytorch_model.bin"):
        (untied / name).write_text(name)
    (untied / "additional_chat_templates").mkdir()
    (untied / "additional_chat_templates" / "rag.jinja").write_text("rag")
    folder = quantized(untied, Recipe(format="int8"), backend)
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE",
        "additional_chat_templates",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "additional_chat_templates" / "rag.jinja").read_text() == "rag"


def leftovers(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if "quantized" in path.name)


def test_a_failure_leaves_nothing(untied: Path, backend: _C.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Packer.pack
    packed: list[str] = []

    def fail_later(self: Packer, name: str, *rest: object) -> _C.Weight:
        packed.append(name)
        if len(packed) == 6:
            raise KeyboardInterrupt
        assert leftovers(untied.parent)  # it is being written
        return pack(self, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Packer, "pack", fail_later)
    with pytest.raises(KeyboardInterrupt):
        quantized(untied, Recipe(format="int4"), backend)
    assert leftovers(untied.parent) == []


def test_what_was_killed_is_swept_up(untied: Path, backend: _C.Backend) -> None:
    abandoned = untied.parent / ".quantized.0123abcd.partial"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"half")
    quantized(untied, Recipe(format="int4"), backend)
    assert leftovers(untied.parent) == ["quantized"]


def test_numbers_that_are_not_finite_are_refused(untied: Path, backend: _C.Backend) -> None:
    file = untied / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    spoilt = tensors[name].copy()
    spoilt[3, 99] = np.inf
    file.unlink()
    save_file({**tensors, name: spoilt}, file)
    with pytest.raises(CheckpointError, match=re.escape(f"tensor '{name}' holds infinities or NaN")):
        quantized(untied, Recipe(format="int8"), backend)
    assert leftovers(untied.parent) == []


def test_refusals(untied: Path, backend: _C.Backend) -> None:
    folder = quantized(untied, Recipe(format="int8"), backend)
    with pytest.raises(ConfigError, match="quantized exists already"):
        quantized(untied, Recipe(format="int4"), backend)
    with pytest.raises(ConfigError, match="is quantized already: quantize the checkpoint that it was made of"):
        quantize_folder(folder, untied.parent / "twice", Recipe(format="int4"), backend=backend, progress=False)
    for message, arguments in {
        "group: 48 is not one of 0, 32, 64, 128": {"format": "int4", "group": 48},
        "asymmetric: int8 is always symmetric": {"format": "int8", "symmetric": False},
        "candidates: must be at least 1, not 0": {"format": "int8", "candidates": 0},
        "head: 'fp8' is not one of int8, int4, keep": {"format": "int8", "head": "fp8"},
        "format: 'keep' is neither int8 nor int4": {"format": "keep"},
    }.items():
        with pytest.raises(ConfigError, match=message):
            Recipe(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_what_others_quantized_is_refused_by_name(untied: Path, method: str, backend: _C.Backend) -> None:
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(UnsupportedModelError, match=f"config.json: quantization_config asks for '{method}'"):
        load_model(untied, backend=backend)


def change_config(folder: Path, **quantization: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= quantization
    (folder / "config.json").write_text(json.dumps(config))


def test_a_later_version_is_refused(untied: Path, backend: _C.Backend) -> None:
    folder = quantized(untied, Recipe(format="int8"), backend)
    change_config(folder, version=2)
    with pytest.raises(UnsupportedModelError, match=r"quantization_config\.version is 2"):
        load_model(folder, backend=backend)
    change_config(folder, version=1, rotation="hadamard")
    with pytest.raises(UnsupportedModelError, match=r"quantization_config\.rotation = 'hadamard'"):
        load_model(folder, backend=backend)


def test_packed_tensors_that_do_not_fit_are_listed(untied: Path, backend: _C.Backend) -> None:
    folder = quantized(untied, Recipe(format="int4", group=32), backend)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 251}))
    with pytest.raises(CheckpointError, match=r"misfitting: .*lm_head\.weight is \[250, 72\], not \[251, 72\]"):
        load_model(folder, backend=backend)


def test_parts_that_do_not_fit_are_named(untied: Path, tmp_path: Path, backend: _C.Backend) -> None:
    folder = quantized(untied, Recipe(format="int4", group=32), backend)
    file = folder / "model.safetensors"
    kept = _C.Safetensors(file)
    tensors, metadata = {name: kept[name] for name in kept.keys()}, kept.metadata  # noqa: SIM118
    name = "model.layers.0.mlp.up_proj.weight"

    def rewrite(changed: dict[str, _C.Tensor], metadata: dict[str, str]) -> None:
        entries = [Entry(each, tensor.dtype, tensor.shape) for each, tensor in changed.items()]
        file.unlink()
        with TensorFile(file, entries, {key: text for key, text in metadata.items() if key != "format"}) as written:
            for each, tensor in changed.items():
                written.write(each, tensor)

    rewrite({**tensors, f"{name}.scales": _C.Tensor.zeros((7, 1, 16), "f16")}, metadata)
    with pytest.raises(CheckpointError, match=re.escape(f"{name}: weight: scales must be contiguous [7, 3, 16]")):
        load_model(folder, backend=backend)
    rewrite(tensors, {key: text for key, text in metadata.items() if key != name})
    with pytest.raises(CheckpointError, match=f"the metadata of the packed tensor '{name}' lack its shape and group"):
        load_model(folder, backend=backend)
    rewrite({key: tensor for key, tensor in tensors.items() if key != f"{name}.scales"}, metadata)
    with pytest.raises(CheckpointError, match=f"misfitting: {name} is u8, not f32, f16 or bf16"):
        load_model(folder, backend=backend)


def test_dtype_converts_what_is_not_packed(untied: Path, backend: _C.Backend) -> None:
    folder = quantized(untied, Recipe(format="int4", head="keep", embeddings="int8"), backend)
    model = load_model(folder, backend=backend, dtype="bf16")
    assert (model.head.weight.data.dtype, model.norm.weight.dtype, model.dtype) == ("bf16", "bf16", "bf16")
    assert model.kv_spec.dtype == "bf16"
    assert model.blocks[0].mlp.down.weights[0].format == "int4"


def test_a_tensor_file_is_written_whole(tmp_path: Path) -> None:
    entries = [Entry("a", "bf16", (3,)), Entry("b", "f32", (16,)), Entry("none", "u8", (0, 4))]
    tensors = {"a": _C.Tensor.zeros((3,), "bf16"), "b": _C.Tensor.from_numpy(np.arange(16, dtype=np.float32))}
    with (
        pytest.raises(ValueError, match="tensors were not written: none, a"),
        TensorFile(tmp_path / "part", entries, {}) as file,
    ):
        file.write("b", tensors["b"])
    with TensorFile(tmp_path / "whole", entries, {"k": "v"}) as file:
        with pytest.raises(ValueError, match=r"b is bf16 \(3,\), not f32 \(16,\)"):
            TensorFile(tmp_path / "x", entries, {}).write("b", tensors["a"])
        for name, tensor in tensors.items():
            file.write(name, tensor)
        file.write("none", _C.Tensor.zeros((0, 4), "u8"))
    whole = _C.Safetensors(tmp_path / "whole")
    assert whole.metadata == {"format": "pt", "k": "v"}
    assert whole["b"].address % 64 == 0
    np.testing.assert_array_equal(whole["b"].numpy(), np.arange(16))
