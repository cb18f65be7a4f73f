"""Transformers with PyTorch on the CPU: bf16 by oneDNN, scaled-dot-product attention, a cache that grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from contestants.contestant import Contestant, Run, Setting

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS: dict[str, list[str]] = {"bf16": ["bf16"], "int8": [], "int4": []}


def version() -> str:
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def prepare(checkpoint: Path, variant: str) -> Path:
    return checkpoint


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return Transformers(path, setting)


class Transformers(Contestant):
    """A model called directly, without ``generate``: less to do for each token."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.set_grad_enabled(False)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._prompts: list[list[int]] = []
        self._cache = DynamicCache(config=self._model.config)

    def _step(self, tokens: list[list[int]], cache: DynamicCache) -> list[int]:
        """Computes tokens of all sequences, [sequences][tokens]; the token that follows each."""
        output = self._model(torch.tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [int(token) for token in output.logits[:, -1].argmax(-1)]

    def prefill(self, prompt: Sequence[int]) -> Run:
        start = time.perf_counter()
        token_ids = self._step([list(prompt)], DynamicCache(config=self._model.config))
        return Run(time.perf_counter() - start, len(prompt), [token_ids])

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        if [list(prompt) for prompt in prompts] != self._prompts:
            self._prompts = [list(prompt) for prompt in prompts]
            self._cache = DynamicCache(config=self._model.config)
            if len(prompts[0]) > 1:
                self._step([prompt[:-1] for prompt in self._prompts], self._cache)
        excess = self._cache.get_seq_length() - (len(prompts[0]) - 1)
        if excess > 0:
            self._cache.crop(-excess)
        token_ids = [[token] for token in self._step([[prompt[-1]] for prompt in prompts], self._cache)]
        start = time.perf_counter()
        for _ in range(tokens - 1):
            for ids, token in zip(token_ids, self._step([[ids[-1]] for ids in token_ids], self._cache), strict=True):
                ids.append(token)
        return Run(time.perf_counter() - start, (tokens - 1) * len(prompts), token_ids)
