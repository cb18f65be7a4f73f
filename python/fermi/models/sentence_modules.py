"""The modules of sentence-transformers: which there are in a folder, and what they say of tokens and pooling."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models.fields import Fields

__all__ = ["FILE", "Module", "SentenceModules", "TextSettings"]

FILE = "modules.json"

#: Those that are known, by the last part of their type's name; Dropout does nothing once training is over.
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout", "LogitScore")

#: What may follow what: a Transformer alone classifies.
ORDER = re.compile(r"Transformer( LogitScore| Pooling( Dense| LayerNorm| Normalize)*)?")

#: Under which names the Transformer module has written its settings.
SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

#: What a tokenizer that knows no longest sequence writes as its length is beyond this.
LONGEST = 2**30


@dataclass(frozen=True)
class Module:
    """One of KINDS, and the folder of its files."""

    kind: str
    folder: Path

    def fields(self) -> Fields:
        """Its config.json; no fields where it has none. Raises CheckpointError for a Pooling without one: it would be
        taken for the mean."""
        file = self.folder / "config.json"
        return Fields.from_file(file) if file.is_file() or self.kind == "Pooling" else Fields({}, file)


@dataclass(frozen=True)
class SentenceModules:
    """What modules.json lists, behind the Transformer."""

    transformer: Path
    rest: tuple[Module, ...]

    @classmethod
    def read(cls, folder: Path) -> SentenceModules | None:
        """None where there is no modules.json. Raises CheckpointError for a malformed one, UnsupportedModelError for a
        module that is not known."""
        file = folder / FILE
        if not file.is_file():
            return None
        try:
            entries = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: {error}") from error
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CheckpointError(f"{file}: must hold a list of objects")
        modules = [_module(Fields(entry, file, f"[{place}].")) for place, entry in enumerate(entries)]
        modules = [module for module in modules if module.kind != "Dropout"]
        kinds = [module.kind for module in modules]
        if not ORDER.fullmatch(" ".join(kinds)):
            raise UnsupportedModelError(f"{file}: modules in an order that is not supported: {', '.join(kinds)}")
        return cls(modules[0].folder, tuple(modules[1:]))


def _module(fields: Fields) -> Module:
    kind = fields.text("type")
    package, name = kind.partition(".")[0], kind.rpartition(".")[2]
    if package != "sentence_transformers" or name not in KINDS:
        raise fields.unsupported("type", f"is {kind!r:.80}; supported: {', '.join(KINDS)} of sentence_transformers")
    path = PurePosixPath(fields.text("path", default=name if name == "Normalize" else ""))
    if path.is_absolute() or ".." in path.parts:
        raise fields.malformed("path", "leaves the folder of the model")
    return Module(name, fields.file.parent / path)


@dataclass(frozen=True)
class TextSettings:
    """What a folder says of the text that a model takes.

    Attributes:
        max_seq_length: tokens to which sequences are cut; None: nothing is said of that.
        do_lower_case: whether text is lowercased before the tokenizer sees it.
        task: of the Transformer, in sentence-transformers' words: feature-extraction, sequence-classification or
            text-generation.
    """

    max_seq_length: int | None
    do_lower_case: bool
    task: str | None

    @classmethod
    def read(cls, folder: Path) -> TextSettings:
        """Of the Transformer module's settings, and of the tokenizer's where those do not say how long sequences are.

        Raises CheckpointError for a malformed file, UnsupportedModelError for a field that is not honoured.
        """
        file = next((folder / name for name in SETTINGS if (folder / name).is_file()), None)
        fields = Fields({}, folder / SETTINGS[0]) if file is None else Fields.from_file(file)
        length = fields.optional_integer("max_seq_length")
        lower = fields.flag("do_lower_case", default=False)
        task = fields.text("transformer_task", default="")
        for name in ("config_args", "config_kwargs"):
            fields.expect(name, {})
        for name in ("query_length", "document_length", "query_expansion"):
            fields.expect(name)  # of models of several vectors
        fields.ignore(PROCESSING_FIELDS)
        fields.refuse_rest()
        return cls(length or _tokenizer_length(folder), lower, task or None)


#: How the tokenizer is called and how Transformers runs.
PROCESSING_FIELDS = frozenset(
    {
        "modality_config",
        "module_output_name",
        "processing_kwargs",
        "unpad_inputs",
        "model_args",
        "model_kwargs",
        "tokenizer_args",
        "processor_kwargs",
        "tokenizer_name_or_path",
    }
)


def _tokenizer_length(folder: Path) -> int | None:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return None
    length = Fields.from_file(file).raw("model_max_length")
    if not isinstance(length, (int, float)) or isinstance(length, bool) or not 0 < length < LONGEST:
        return None
    return int(length)
