"""fermi: an inference engine for small language models on your own machine.

>>> from fermi import LLM, SamplingParams
>>> llm = LLM("demo")
>>> llm.generate("3 + 4 =", SamplingParams(temperature=0))[0].outputs[0].text
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fermi.llm import LLM
    from fermi.outputs import CompletionOutput, EmbeddingOutput, Perplexity, RequestOutput
    from fermi.sampling_params import SamplingParams, StructuredOutputs

__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingOutput",
    "Perplexity",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
    "devices",
]


def devices() -> list[str]:
    """The devices that models can run on here: ``cpu``, ``cuda:0``, ``metal``…"""
    from fermi import _C

    return _C.devices()


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `fermi --help` and `import fermi.config` stay quick.
    if name == "__version__":
        from importlib.metadata import version

        return version("fermi-infer")
    if name in ("SamplingParams", "StructuredOutputs"):
        from fermi import sampling_params

        return getattr(sampling_params, name)
    if name == "LLM":
        from fermi.llm import LLM

        return LLM
    if name in ("CompletionOutput", "EmbeddingOutput", "Perplexity", "RequestOutput"):
        from fermi import outputs

        return getattr(outputs, name)
    raise AttributeError(f"module 'fermi' has no attribute {name!r}")
