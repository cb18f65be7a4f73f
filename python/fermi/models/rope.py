"""Rotary position embedding: the frequencies of every scaling that checkpoints ask for.

A head's elements i and i + half turn by position * frequency[i] (arXiv 2104.09864). A scaling stretches the frequencies
so that a model reaches further than it was trained to. They are rounded to float32 step by step as in PyTorch: at a
position of some thousands, frequencies rounded otherwise would turn a head by an angle that shows in the logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.models.fields import Fields

__all__ = ["LONGROPE_ONLY", "RopeParameters", "RopeTable"]

Frequencies = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RopeTable:
    """What the core needs to turn heads: see `_C.rope_angles`."""

    frequencies: Frequencies  # [1 or 2, half]
    rule: _C.RopeRuleName = "fixed"
    attention_factor: float = 1.0
    base: float = 0.0
    factor: float = 1.0
    original_length: int = 0


@dataclass(frozen=True)
class Context:
    """What a scaling may refer to outside its own section of config.json."""

    rope_theta: float
    dimensions: int  # of a head, those that turn
    max_position_embeddings: int
    original_max_position_embeddings: int

    @property
    def wavelengths(self) -> Frequencies:
        """theta ** (2i / dimensions) of the unscaled embedding, f32 [half], in tokens per radian."""
        exponents = np.arange(0, self.dimensions, 2, dtype=np.float32) / np.float32(self.dimensions)
        # NumPy's float32 power is off by some units in the last place; rounding the float64 one is off by half a unit
        wavelengths: npt.NDArray[np.float64] = np.float64(np.float32(self.rope_theta)) ** exponents.astype(np.float64)
        return wavelengths.astype(np.float32)

    @property
    def frequencies(self) -> Frequencies:
        """Of the unscaled embedding, f32 [half], in radians per token."""
        return np.reciprocal(self.wavelengths)


class Scaling(ABC):
    """One way of stretching the frequencies; its attributes bear the checkpoint's names."""

    @classmethod
    @abstractmethod
    def read(cls, fields: Fields, context: Context) -> Scaling:
        """Reads the scaling's own fields. Raises CheckpointError where they do not fit."""

    @abstractmethod
    def table(self, context: Context) -> RopeTable: ...

    def reach(self, context: Context) -> int:
        """Tokens of the longest context."""
        return context.max_position_embeddings


@dataclass(frozen=True)
class Default(Scaling):
    """No scaling."""

    @classmethod
    def read(cls, fields: Fields, context: Context) -> Default:
        return cls()

    def table(self, context: Context) -> RopeTable:
        return RopeTable(context.frequencies[None])


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation (arXiv 2306.15595): every frequency divided by the factor."""

    factor: float

    @classmethod
    def read(cls, fields: Fields, context: Context) -> Linear:
        return cls(fields.number("factor"))

    def table(self, context: Context) -> RopeTable:
        return RopeTable(context.frequencies[None] / np.float32(self.factor))

    def reach(self, context: Context) -> int:
        return _stretched(context.max_position_embeddings, self.factor)


@dataclass(frozen=True)
class DynamicNtk(Scaling):
    """The base grows with the length of the sequence, once that exceeds the model's context."""

    factor: float

    @classmethod
    def read(cls, fields: Fields, context: Context) -> DynamicNtk:
        factor = fields.number("factor")
        if factor < 1:
            raise fields.malformed("factor", f"must be at least 1, not {factor:g}")
        if context.dimensions <= 2 or context.dimensions % 2:
            raise fields.unsupported(
                "factor", f"of a dynamic embedding that turns {context.dimensions} elements of a head"
            )
        return cls(factor)

    def table(self, context: Context) -> RopeTable:
        return RopeTable(
            context.frequencies[None],
            rule="dynamic_ntk",
            base=context.rope_theta,
            factor=self.factor,
            original_length=context.max_position_embeddings,
        )

    def reach(self, context: Context) -> int:
        return _stretched(context.max_position_embeddings, self.factor)


@dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1: low frequencies divided by the factor, high ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float

    @classmethod
    def read(cls, fields: Fields, context: Context) -> Llama3:
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if high <= low:
            raise fields.malformed("high_freq_factor", f"must be greater than low_freq_factor, {low:g}")
        return cls(fields.number("factor"), low, high)

    def table(self, context: Context) -> RopeTable:
        frequencies = context.frequencies
        turns = context.original_max_position_embeddings / (2 * math.pi / frequencies)  # within the original context
        kept = (turns - np.float32(self.low_freq_factor)) / np.float32(self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, np.float32(0), np.float32(1))
        return RopeTable(((1 - kept) * frequencies / np.float32(self.factor) + kept * frequencies)[None])


@dataclass(frozen=True)
class Yarn(Scaling):
    """YaRN (arXiv 2309.00071): a ramp over the dimensions from kept to divided frequencies; attention is sharpened."""

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool

    @classmethod
    def read(cls, fields: Fields, context: Context) -> Yarn:
        if context.rope_theta <= 1:
            raise fields.malformed("rope_theta", f"must be greater than 1, not {context.rope_theta:g}")
        factor = _factor(fields, context)
        mscale, mscale_all_dim = _positive(fields, "mscale", 0.0), _positive(fields, "mscale_all_dim", 0.0)
        attention_factor = fields.optional_number("attention_factor")
        if attention_factor is None and mscale and mscale_all_dim:
            attention_factor = cls._mscale(factor, mscale) / cls._mscale(factor, mscale_all_dim)
        fields.raw("finetuned")  # says how the checkpoint was made
        return cls(
            factor=factor,
            attention_factor=attention_factor or cls._mscale(factor, 1.0),
            beta_fast=_positive(fields, "beta_fast", 32.0),
            beta_slow=_positive(fields, "beta_slow", 1.0),
            truncate=fields.flag("truncate", default=True),
        )

    @staticmethod
    def _mscale(factor: float, mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    def table(self, context: Context) -> RopeTable:
        low, high = self._dimension(self.beta_fast, context), self._dimension(self.beta_slow, context)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, context.dimensions - 1)
        half = np.arange((context.dimensions + 1) // 2, dtype=np.float32)
        ramp = (half - np.float32(low)) / np.float32(high - low if high != low else 0.001)
        kept = 1 - np.clip(ramp, np.float32(0), np.float32(1))
        interpolated = np.reciprocal(np.float32(self.factor) * context.wavelengths)
        return RopeTable(
            (interpolated * (1 - kept) + context.frequencies * kept)[None], attention_factor=self.attention_factor
        )

    @staticmethod
    def _dimension(turns: float, context: Context) -> float:
        """The dimension whose frequency makes so many turns within the original context."""
        wavelength = context.original_max_position_embeddings / (turns * 2 * math.pi)
        return context.dimensions * math.log(wavelength) / (2 * math.log(context.rope_theta))

    def reach(self, context: Context) -> int:
        stretched = _stretched(context.original_max_position_embeddings, self.factor)
        return max(context.max_position_embeddings, stretched)


@dataclass(frozen=True)
class LongRope(Scaling):
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, other ones beyond the original context."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float

    @classmethod
    def read(cls, fields: Fields, context: Context) -> LongRope:
        half = (context.dimensions + 1) // 2
        factors = {}
        for name in ("short_factor", "long_factor"):
            factors[name] = fields.numbers(name)
            if len(factors[name]) != half:
                raise fields.malformed(name, f"must hold {half} numbers, not {len(factors[name])}")
        factor = _factor(fields, context)
        attention_factor = fields.optional_number("attention_factor")
        if attention_factor is None and factor > 1:
            original = context.original_max_position_embeddings
            if original < 2:
                raise fields.malformed("original_max_position_embeddings", f"must be at least 2, not {original}")
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original))
        return cls(**factors, attention_factor=attention_factor or 1.0)

    def table(self, context: Context) -> RopeTable:
        divisors = np.array([self.short_factor, self.long_factor], dtype=np.float32)
        return RopeTable(
            np.reciprocal(divisors * context.wavelengths),
            rule="longrope",
            attention_factor=self.attention_factor,
            original_length=context.original_max_position_embeddings,
        )


SCALINGS: Mapping[str, type[Scaling]] = MappingProxyType(
    {
        "default": Default,
        "linear": Linear,
        "dynamic": DynamicNtk,
        "llama3": Llama3,
        "yarn": Yarn,
        "longrope": LongRope,
    }
)


#: Of the Phi-3 family, whose earlier files write other names for the same.
LONGROPE_ONLY: Mapping[str, type[Scaling]] = MappingProxyType(
    {"default": Default, "longrope": LongRope, "su": LongRope, "yarn": LongRope}
)


@dataclass(frozen=True)
class RopeParameters:
    """The rotary embedding of a config.json, in the older form (rope_theta, rope_scaling) or the newer one."""

    scaling: Scaling
    context: Context

    @classmethod
    def read(
        cls,
        fields: Fields,
        *,
        head_dim: int,
        max_position_embeddings: int,
        rope_theta: float = 10_000.0,
        partial_rotary_factor: float = 1.0,
        original_max_position_embeddings: int | None = None,
        scalings: Mapping[str, type[Scaling]] = SCALINGS,
    ) -> RopeParameters:
        """Reads rope_theta, partial_rotary_factor, original_max_position_embeddings and the section of the scaling.

        The arguments named as fields are what an absent one means. ``scalings``: those there are, by the checkpoint's
        name. Raises CheckpointError for values that make no sense and
        UnsupportedModelError for a type, or a field of it, that is not known.
        """
        older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
        if older is not None and newer is not None:
            raise fields.unsupported("rope_scaling", "stands beside rope_parameters; one of them must go")
        return cls.of_section(
            older or newer or Fields({}, fields.file),
            fields,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
            rope_theta=rope_theta,
            partial_rotary_factor=partial_rotary_factor,
            original_max_position_embeddings=original_max_position_embeddings,
            scalings=scalings,
        )

    @classmethod
    def of_section(
        cls,
        section: Fields,
        fields: Fields,
        *,
        head_dim: int,
        max_position_embeddings: int,
        rope_theta: float = 10_000.0,
        partial_rotary_factor: float = 1.0,
        original_max_position_embeddings: int | None = None,
        scalings: Mapping[str, type[Scaling]] = SCALINGS,
    ) -> RopeParameters:
        """The same where the section has been found; what it lacks may stand among ``fields``."""
        theta = _either("rope_theta", section, fields).number("rope_theta", default=rope_theta)
        partial_field = _either("partial_rotary_factor", section, fields)
        partial = partial_field.number("partial_rotary_factor", default=partial_rotary_factor)
        dimensions = int(head_dim * partial)
        if partial > 1 or dimensions < 1:
            raise partial_field.malformed("partial_rotary_factor", f"must leave 1 to {head_dim} elements of a head")
        if dimensions == head_dim and head_dim % 2:
            raise fields.malformed("head_dim", f"must be even for a rotary embedding, not {head_dim}")
        original = _either("original_max_position_embeddings", fields, section)
        context = Context(
            rope_theta=theta,
            dimensions=dimensions,
            max_position_embeddings=max_position_embeddings,
            original_max_position_embeddings=original.integer(
                "original_max_position_embeddings", default=original_max_position_embeddings or max_position_embeddings
            ),
        )
        kind = "rope_type" if "rope_type" in section else "type"
        scaling = section.choice(kind, scalings, default="default").read(section, context)
        section.expect("type", section.raw(kind))
        section.refuse_rest()
        return cls(scaling, context)

    def table(self) -> RopeTable:
        """Frequencies and how they depend on a sequence's length."""
        return self.scaling.table(self.context)

    @property
    def reach(self) -> int:
        """Tokens of the longest context that the scaling provides for."""
        return self.scaling.reach(self.context)


def _either(name: str, first: Fields, second: Fields) -> Fields:
    """The one of two places where a field stands; both count as read."""
    second.raw(name)
    return first if first.raw(name) is not None else second


def _factor(fields: Fields, context: Context) -> float:
    """The scaling factor; where absent, how far the context exceeds the original one."""
    ratio = context.max_position_embeddings / context.original_max_position_embeddings
    return fields.number("factor", default=ratio)


def _positive(fields: Fields, name: str, default: float) -> float:
    """A number whose absence may also be written as 0."""
    return default if fields.raw(name) == 0 else fields.number(name, default=default, above=-1e-30) or default


def _stretched(length: int, factor: float) -> int:
    return min(int(length * factor), 2**30)
