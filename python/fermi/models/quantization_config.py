"""What a config.json says of packed weights: `fermi quantize` writes it, and every other method is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fermi import _C
from fermi.models.fields import Fields

__all__ = ["QuantizationConfig"]

METHOD = "fermi"
VERSION = 1

FORMATS: Mapping[str, _C.PackedFormatName] = MappingProxyType({"int8": "int8", "int4": "int4"})


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How the matrices of a checkpoint are packed. It informs: the tensors themselves say what they are.

    Attributes:
        format: of the projections.
        group_size: columns that share a scale; 0: all of a row.
        symmetric: whether zero is the middle level.
        head, embeddings: their formats, or None where they are kept as they were.
    """

    format: _C.PackedFormatName
    group_size: int
    symmetric: bool
    head: _C.PackedFormatName | None
    embeddings: _C.PackedFormatName | None

    @classmethod
    def read(cls, fields: Fields) -> QuantizationConfig | None:
        """The field quantization_config, None where it is absent.

        Raises UnsupportedModelError where another program quantized, or a later version of this one.
        """
        section = fields.section("quantization_config")
        if section is None:
            return None
        method = section.raw("quant_method") or section.raw("quant_algo") or "a method without a name"
        if method != METHOD:
            raise fields.unsupported(
                "quantization_config",
                f"asks for {method!r:.60}; supported: checkpoints that fermi quantize wrote",
            )
        section.expect("version", VERSION)
        config = cls(
            format=section.choice("format", FORMATS),
            group_size=section.integer("group_size", minimum=0),
            symmetric=section.flag("symmetric", default=True),
            head=section.choice("head", FORMATS) if "head" in section else None,
            embeddings=section.choice("embeddings", FORMATS) if "embeddings" in section else None,
        )
        section.ignore(frozenset({"head", "embeddings"}))
        section.refuse_rest()
        return config

    def to_json(self) -> dict[str, Any]:
        """The value of the field."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "format": self.format,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "head": self.head,
            "embeddings": self.embeddings,
        }
