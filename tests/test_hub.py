"""Finding a model's files: folders, and a local imitation of the hub through the real huggingface_hub."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fermi import hub
from fermi.errors import CheckpointError, GatedModelError, HubError, ModelNotFoundError, OfflineError
from hub_server import Hub, Repository, serve_hub

INDEX = "model.safetensors.index.json"
TEXT = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"model_max_length": 64}',
    "chat_template.jinja": b"{{ messages }}",
}
FOREIGN = {"README.md": b"# A model", "pytorch_model.bin": b"pickle", "model.gguf": b"GGUF", "onnx/model.onnx": b"onnx"}
WHOLE = {**TEXT, **FOREIGN, "model.safetensors": b"weights" * 1000, "consolidated.safetensors": b"the same again"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SHARDED = {
    **TEXT,
    INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}}).encode(),
    **{name: name.encode() * 100 for name in SHARDS},
}


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve_hub() as server:
        server.repositories["lab/whole"] = Repository(WHOLE, revisions=("main", "v1"))
        server.repositories["lab/sharded"] = Repository(SHARDED)
        yield server


def resolve(the_hub: Hub, cache: Path, model: str, **options: Any) -> Path:
    return hub.resolve(model, endpoint=the_hub.url, cache_dir=cache, progress=False, **options)


def test_only_the_files_needed(the_hub: Hub, tmp_path: Path) -> None:
    folder = resolve(the_hub, tmp_path, "lab/whole")
    assert {path.name for path in folder.iterdir()} == {*TEXT, "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WHOLE["model.safetensors"]
    assert sorted(the_hub.fetched()) == sorted([*TEXT, "model.safetensors"])


def test_second_time_nothing_is_fetched(the_hub: Hub, tmp_path: Path) -> None:
    first = resolve(the_hub, tmp_path, "lab/sharded")
    the_hub.requests.clear()
    assert resolve(the_hub, tmp_path, "lab/sharded") == first
    assert the_hub.fetched() == []
    the_hub.requests.clear()
    assert resolve(the_hub, tmp_path, "lab/sharded", offline=True) == first
    assert the_hub.requests == []


def test_broken_connection_goes_on_where_it_stopped(
    the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    the_hub.cut_after["model.safetensors"] = 2500
    folder = resolve(the_hub, tmp_path, "lab/whole")
    assert (folder / "model.safetensors").read_bytes() == WHOLE["model.safetensors"]
    ranges = [
        given for method, path, given in the_hub.requests if method == "GET" and path.endswith("/model.safetensors")
    ]
    assert ranges[0] is None
    assert ranges[1:] == ["bytes=2500-"]


def test_files_of_a_failed_download_are_kept(the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = the_hub.repositories["lab/sharded"].files.pop(SHARDS[1])
    the_hub.repositories["lab/sharded"].files["model-00002-of-00002.safetensors.part"] = b""
    with pytest.raises(CheckpointError, match=rf"names {SHARDS[1]}, which is missing"):
        resolve(the_hub, tmp_path, "lab/sharded")
    the_hub.repositories["lab/sharded"].files[SHARDS[1]] = missing
    the_hub.requests.clear()
    resolve(the_hub, tmp_path, "lab/sharded")
    assert SHARDS[1] in the_hub.fetched()


def test_revision(the_hub: Hub, tmp_path: Path) -> None:
    assert resolve(the_hub, tmp_path, "lab/whole", revision="v1").is_dir()
    commit = the_hub.repositories["lab/whole"].commit
    assert resolve(the_hub, tmp_path, "lab/whole", revision=commit).name == commit
    with pytest.raises(ModelNotFoundError, match=r"lab/whole on http.* has no revision 'v2'"):
        resolve(the_hub, tmp_path, "lab/whole", revision="v2")


def test_no_such_model(the_hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no model lab/none on http.*HF_TOKEN"):
        resolve(the_hub, tmp_path, "lab/none")


@pytest.mark.parametrize("name", ["", "a b", "a//b", "-x", "a/b c", "x..y", "ü/x", "a" * 200, "a" * 5000])
def test_not_a_name(the_hub: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(the_hub, tmp_path, name)
    assert the_hub.requests == []


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/none", "a/b/c", "..\\none"])
def test_no_such_folder(the_hub: Hub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        resolve(the_hub, tmp_path, name)
    assert the_hub.requests == []


def test_gated(the_hub: Hub, tmp_path: Path) -> None:
    the_hub.repositories["lab/gated"] = Repository(WHOLE, token="hf_good", gated=True)
    with pytest.raises(GatedModelError, match=r"is gated: accept its terms at http.*/lab/gated and set HF_TOKEN"):
        resolve(the_hub, tmp_path, "lab/gated")
    with pytest.raises(GatedModelError, match="use a token of that account"):
        resolve(the_hub, tmp_path, "lab/gated", token="hf_bad")
    assert resolve(the_hub, tmp_path, "lab/gated", token="hf_good").is_dir()


def test_private(the_hub: Hub, tmp_path: Path) -> None:
    the_hub.repositories["lab/private"] = Repository(WHOLE, token="hf_good")
    with pytest.raises(ModelNotFoundError, match="HF_TOKEN"):
        resolve(the_hub, tmp_path, "lab/private")
    assert resolve(the_hub, tmp_path, "lab/private", token="hf_good").is_dir()


def test_offline_and_not_in_the_cache(the_hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"lab/whole is not in the cache .*offline"):
        resolve(the_hub, tmp_path, "lab/whole", offline=True)
    assert the_hub.requests == []


def test_offline_with_a_part_in_the_cache(the_hub: Hub, tmp_path: Path) -> None:
    folder = resolve(the_hub, tmp_path, "lab/whole")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OfflineError, match="only a part"):
        resolve(the_hub, tmp_path, "lab/whole", offline=True)


def test_online_outranks_the_librarys_own_switch(the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(the_hub, tmp_path, "lab/whole").is_dir()
    assert constants.HF_HUB_OFFLINE


def test_unreachable(the_hub: Hub, tmp_path: Path) -> None:
    folder = resolve(the_hub, tmp_path, "lab/whole")
    the_hub.url = "http://127.0.0.1:9"
    assert resolve(the_hub, tmp_path, "lab/whole") == folder
    with pytest.raises(OfflineError, match=r"lab/sharded cannot be fetched from http://127\.0\.0\.1:9 .*--offline"):
        resolve(the_hub, tmp_path, "lab/sharded")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_hub_in_trouble(the_hub: Hub, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    the_hub.status = status
    with pytest.raises(OfflineError, match=f"answered {status}"):
        resolve(the_hub, tmp_path, "lab/whole")


def test_no_safetensors(the_hub: Hub, tmp_path: Path) -> None:
    the_hub.repositories["lab/old"] = Repository({**TEXT, **FOREIGN})
    with pytest.raises(
        HubError, match=r"no safetensors weights; it has model\.gguf, onnx/model\.onnx, pytorch_model\.bin"
    ):
        resolve(the_hub, tmp_path, "lab/old")
    assert the_hub.fetched() == []


def test_disk_too_small(the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HubError, match=r"no space for lab/whole .* are free"):
        resolve(the_hub, tmp_path, "lab/whole")


def test_disk_fills_up(the_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(HubError, match="the disk is full"):
        resolve(the_hub, tmp_path, "lab/whole")


def test_folder(tmp_path: Path) -> None:
    for name, data in SHARDED.items():
        (tmp_path / name).write_bytes(data)
    assert hub.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(HubError, match="is a folder: a revision"):
        hub.resolve(str(tmp_path), revision="main")
    with pytest.raises(ModelNotFoundError, match="is a file: give the folder"):
        hub.resolve(str(tmp_path / SHARDS[0]))
    (tmp_path / SHARDS[0]).unlink()
    with pytest.raises(CheckpointError, match=rf"names {SHARDS[0]}, which is missing"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"weight_map": 3}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "../x.safetensors"}}',
    ],
)
def test_malformed_index(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(CheckpointError, match="index"):
        hub.resolve(str(tmp_path))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        hub.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(HubError, match=r"no safetensors weights; it has pytorch_model\.bin"):
        hub.resolve(str(tmp_path))


def test_wanted_of_a_sentence_model() -> None:
    files = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    files += ["config_sentence_transformers.json", "sentence_bert_config.json", "sentence_xlm-roberta_config.json"]
    assert hub.wanted([*files, "model.safetensors", "onnx/model.safetensors", "openvino/x.xml"]) == sorted(
        [*files, "model.safetensors"]
    )


def test_wanted_of_a_model_with_odd_names() -> None:
    assert hub.wanted([INDEX, "a.safetensors", "b.safetensors"]) == ["a.safetensors", "b.safetensors", INDEX]
    assert hub.wanted(["consolidated.safetensors", "params.json"]) == ["consolidated.safetensors"]
