"""Who takes part: one file per engine, each driven in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from contestants.contestant import Adapter

__all__ = ["ENVIRONMENTS", "FERMI", "PEERS", "adapter"]

FERMI = "fermi"
PEERS: Mapping[str, str] = {
    "llama.cpp": "llama_cpp_peer",
    "transformers": "transformers_peer",
    "openvino": "openvino_peer",
    "ctranslate2": "ctranslate2_peer",
    "onnxruntime": "onnxruntime_peer",
}
"""Names on the command line, and modules here."""
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {"transformers": {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}}
"""Variables for a contestant's process, besides the number of threads."""


def adapter(name: str) -> Adapter:
    """The module of a contestant. What it measures it imports only when it is asked to."""
    module = "fermi_engine" if name == FERMI else PEERS[name]
    return cast(Adapter, importlib.import_module(f"contestants.{module}"))
