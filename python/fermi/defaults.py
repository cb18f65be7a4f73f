"""How a request is sampled where it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fermi.config import GenerationSettings
from fermi.sampling_params import SamplingParams

__all__ = ["Defaults"]


@dataclass(frozen=True, slots=True)
class Defaults:
    """How to sample where a request does not say: the server's settings, else the model's, else fermi's."""

    temperature: float = 0.2
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    max_tokens: int = 256
    max_tokens_cap: int = 9056

    @classmethod
    def of(cls, settings: GenerationSettings, model: Mapping[str, Any]) -> Defaults:
        """``model`` is the checkpoint's generation_config.json; values there that cannot be are passed over."""

        def choose(configured: float | None, name: str, low: float, high: float, otherwise: float) -> float:
            if configured is not None:
                return configured
            value = model.get(name)
            usable = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
            return float(value) if usable and value is not None else otherwise

        greedy = 0.0 if model.get("do_sample") is False else 0.2
        return cls(
            temperature=choose(settings.default_temperature, "" if greedy == 0 else "temperature", 0, 2, greedy),
            top_p=choose(settings.default_top_p, "top_p", 1e-6, 1, 1.0),
            top_k=int(choose(None, "top_k", 0, 2**31 - 1, 0)),
            min_p=choose(None, "min_p", 0, 1, 0.0),
            repetition_penalty=choose(settings.default_repeat_penalty, "repetition_penalty", 1e-3, 2, 1.1),
            max_tokens=settings.default_max_new_tokens,
            max_tokens_cap=settings.max_new_tokens_cap,
        )

    def penalty(self, temperature: float) -> float:
        """The repetition penalty of a request that names none: a default one never touches a greedy request."""
        return self.repetition_penalty if temperature > 0 else 1.0

    def sampling_params(self, *, seed: int | None = None) -> SamplingParams:
        """A request that says nothing but its seed."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.penalty(self.temperature),
            max_tokens=self.max_tokens,
            seed=seed,
        )
