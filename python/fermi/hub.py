"""From a model's name to a folder with its files: a local one, the embedded demo model, or a repository on the hub."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fermi.errors import CheckpointError, FermiError, GatedModelError, HubError, ModelNotFoundError, OfflineError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

DEMO = "demo"
INDEX = "model.safetensors.index.json"

_NEEDED = re.compile(
    r"config\.json|generation_config\.json|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|tokenizer\.model"
    r"|vocab\.(json|txt)|merges\.txt"
    r"|modules\.json|config_sentence_transformers\.json|sentence_[a-z-]+_config\.json|\d+_\w+/config\.json"
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_ID = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
_FOREIGN = re.compile(r"\.(bin|gguf|onnx|pth|pt|h5|msgpack|ot)$")


def resolve(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    progress: bool = True,
) -> Path:
    """Find the folder that holds a model's files, downloading what is needed and not yet here.

    A download that is cut off goes on where it stopped; complete files are never fetched twice.

    Args:
        model: a folder, ``demo``, or an id on the hub such as ``Qwen/Qwen3-1.7B``.
        revision: branch, tag or commit; only for a hub id.
        token: access token; without it, the one that huggingface_hub finds itself.
        offline: use only what is in the cache.
        cache_dir: the cache; huggingface_hub's own by default.
        endpoint: address of the hub; huggingface_hub's own by default.
        progress: show progress bars on stderr.

    Raises:
        ModelNotFoundError: no such folder, repository or revision.
        GatedModelError: a token is needed, or the one given has no access.
        OfflineError: not in the cache, and offline or the hub cannot be reached.
        HubError: no safetensors there, no space on the disk, or another failure of the hub.
        CheckpointError: the index names files that are missing, or cannot be read.
    """
    if model == DEMO:
        from fermi.demo import model_folder

        return model_folder()
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:
        raise ModelNotFoundError(f"{model}: {error}") from error
    if _is_too_long(path):
        raise ModelNotFoundError(f"there is no folder of so long a name: {model[:80]}…")
    if path.is_dir():
        if revision is not None:
            raise HubError(f"{model} is a folder: a revision ({revision!r}) is only for models on the hub")
        check_folder(path)
        return path
    if path.exists():
        raise ModelNotFoundError(f"{model} is a file: give the folder that holds config.json and the safetensors")
    _check_id(model)
    folder = _Repository(model, revision, token, cache_dir, endpoint).fetch(offline=offline, progress=progress)
    check_folder(folder)
    return folder


def _is_too_long(path: Path) -> bool:
    try:
        path.exists()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def check_folder(folder: Path) -> None:
    """See that a folder has a config and every safetensors file that its index names.

    Raises:
        ModelNotFoundError: there is no config.json.
        HubError: there is no safetensors file.
        CheckpointError: the index is malformed, or names a file that is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} has no config.json: it is not the folder of a model")
    files = [path.name for path in folder.iterdir() if path.is_file()]
    if "model.safetensors" not in files and (folder / INDEX).is_file():
        missing = sorted(name for name in _indexed(folder / INDEX) if not (folder / name).is_file())
        if missing:
            raise CheckpointError(
                f"{folder / INDEX} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} missing: "
                "the download or copy is incomplete"
            )
    elif not any(name.endswith(".safetensors") for name in files):
        raise HubError(_no_safetensors(str(folder), files))


def _indexed(index: Path) -> set[str]:
    """The files that an index names."""
    try:
        files = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors: {error!r}") from error
    names = {
        name for name in files if isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
    }
    strange = [name for name in files if name not in names] if all(isinstance(name, str) for name in files) else [files]
    if strange or not names:
        raise CheckpointError(f"{index} names {strange[:1] or 'no files'}: expected safetensors files beside it")
    return names


def _no_safetensors(where: str, files: Iterable[str]) -> str:
    foreign = sorted(name for name in files if _FOREIGN.search(name))
    hint = f"; it has {', '.join(foreign[:3])}, which fermi does not read" if foreign else ""
    return f"{where} has no safetensors weights{hint}"


def wanted(files: Iterable[str]) -> list[str]:
    """Of a repository's files those that fermi reads; no weights among them where it has no safetensors."""
    names = set(files)
    weights = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    if "model.safetensors" in weights:
        weights = {"model.safetensors"}
    elif INDEX in names:
        weights = {name for name in weights if _SHARD.fullmatch(name)} or weights
    elif len(weights) > 1:
        weights -= {name for name in weights if name.startswith("consolidated")}
    poolers = {name for name in names if re.fullmatch(r"\d+_\w+/model\.safetensors", name)}
    rest = {name for name in names if _NEEDED.fullmatch(name)}
    if "model.safetensors" not in weights:
        rest |= {INDEX} & names
    return sorted(weights | poolers | rest) if weights else sorted(rest)


def _check_id(model: str) -> None:
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1:
        raise ModelNotFoundError(f"there is no folder {model}")
    if not _ID.fullmatch(model) or ".." in model or "--" in model:
        raise ModelNotFoundError(
            f"{model!r} is neither a folder, nor the id of a model on the hub (owner/name), nor {DEMO!r}"
        )


class _Repository:
    """One revision of one model on the hub."""

    def __init__(
        self, name: str, revision: str | None, token: str | None, cache_dir: str | Path | None, endpoint: str | None
    ) -> None:
        from huggingface_hub import constants

        self.name = name
        self.revision = revision
        self.token = token
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")

    def fetch(self, *, offline: bool, progress: bool) -> Path:
        """The folder in the cache, complete as far as the hub or the cache knows."""
        if offline:
            return self._cached(OfflineError(f"{self.name} is not in the cache {self.cache_dir}, and fermi is offline"))
        with _library(progress=progress):
            try:
                files = self._needed()
                self._check_space(files)
                return self._snapshot(list(files))
            except FermiError:
                raise
            except Exception as error:
                explained = self._explain(error)
                if isinstance(explained, OfflineError):
                    return self._cached(explained)
                raise explained from error

    def _needed(self) -> dict[str, int]:
        """The files to have, with their sizes in bytes."""
        from huggingface_hub import HfApi

        info: ModelInfo = HfApi(endpoint=self.endpoint, token=self.token, library_name="fermi").model_info(
            self.name, revision=self.revision, files_metadata=True, timeout=30
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        files = {name: sizes[name] for name in wanted(sizes)}
        if not any(name.endswith(".safetensors") for name in files):
            raise HubError(_no_safetensors(f"{self.name} on {self.endpoint}", sizes))
        return files

    def _check_space(self, files: dict[str, int]) -> None:
        from huggingface_hub import try_to_load_from_cache

        missing = sum(
            size
            for name, size in files.items()
            if not try_to_load_from_cache(self.name, name, cache_dir=self.cache_dir, revision=self.revision)
        )
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.cache_dir).free
        if missing > free:
            raise HubError(self._disk_full(f"{missing / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free"))

    def _snapshot(self, files: list[str], *, local: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.name,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            endpoint=self.endpoint,
            allow_patterns=files or None,
            local_files_only=local,
            library_name="fermi",
        )
        return Path(folder)

    def _cached(self, otherwise: HubError) -> Path:
        """What the cache holds, if it holds a whole model; else the given error."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = self._snapshot(["config.json"], local=True)
        except LocalEntryNotFoundError as error:
            raise otherwise from error
        try:
            check_folder(folder)
        except FermiError as error:
            raise type(otherwise)(f"{otherwise}; the cache holds only a part of it") from error
        return folder

    def _explain(self, error: Exception) -> HubError:
        """The error of huggingface_hub in our words."""
        from huggingface_hub import errors

        where = f"{self.name} on {self.endpoint}"
        if isinstance(error, errors.GatedRepoError):
            return GatedModelError(
                f"{where} is gated: accept its terms at {self.endpoint}/{self.name} and "
                + ("use a token of that account (HF_TOKEN)" if self.token else "set HF_TOKEN to your access token")
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{where} has no revision {self.revision!r}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return ModelNotFoundError(
                f"there is no model {where}; if it is private, set HF_TOKEN to a token that may read it"
            )
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            if status in (401, 403):
                return GatedModelError(f"{where} refuses access ({status}): is HF_TOKEN right?")
            return OfflineError(
                f"{self.endpoint} answered {status} for {self.name}, which is not in the cache; try later"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return HubError(self._disk_full("the disk is full"))
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return HubError(f"the cache {self.cache_dir} cannot be written: {error.strerror}")
        return OfflineError(
            f"{self.name} cannot be fetched from {self.endpoint} ({type(error).__name__}: {error}), and is not in the "
            f"cache {self.cache_dir}. Without network: --model demo, or the folder of a model, or copy the cache "
            "from a machine that has it and pass --offline"
        )

    def _disk_full(self, reason: str) -> str:
        return f"no space for {self.name} in {self.cache_dir}: {reason}. Another place: FERMI_CACHE__HUB_DIR or HF_HOME"


@contextmanager
def _library(*, progress: bool) -> Iterator[None]:
    """Make huggingface_hub follow our settings, which outrank the environment that it read when imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    quiet = are_progress_bars_disabled()
    if not progress:
        disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        if not progress and not quiet:
            enable_progress_bars()
