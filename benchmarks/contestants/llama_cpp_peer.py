"""llama.cpp, as ``pip install llama-cpp-python`` builds it for this machine, by its C interface.

Batches of 512 tokens, mmap, KV cache in f16. For every case flash attention is tried on
and off, and the faster is timed.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as llama
import numpy as np
from checkpoints import made_once

from contestants.contestant import Contestant, NotSupportedError, Run, Setting
from contestants.gguf_file import write_gguf

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS = {"bf16": ["BF16"], "int8": ["Q8_0"], "int4": ["Q4_0", "Q4_K_M"]}
FILE_TYPES = {
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
BATCH = 512


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Drops llama.cpp's log."""


def version() -> str:
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def prepare(checkpoint: Path, variant: str) -> Path:
    llama.llama_log_set(silent, None)
    if variant == "BF16":
        folder = made_once(checkpoint.parent / "gguf-BF16", lambda part: write_gguf(checkpoint, part / "model.gguf"))
        return folder / "model.gguf"
    source = prepare(checkpoint, "BF16")

    def quantize(folder: Path) -> None:
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[variant]
        target = str(folder / "model.gguf").encode()
        if llama.llama_model_quantize(str(source).encode(), target, ctypes.byref(parameters)) != 0:
            raise NotSupportedError(f"llama.cpp could not quantize to {variant}")

    return made_once(checkpoint.parent / f"gguf-{variant}", quantize) / "model.gguf"


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return LlamaCpp(path, setting)


class LlamaCpp(Contestant):
    """A model and one context at a time; a context is made anew when its flash attention is to be switched."""

    def __init__(self, path: Path, setting: Setting) -> None:
        llama.llama_log_set(silent, None)
        llama.llama_backend_init()
        self._setting = setting
        model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        if model is None:
            raise NotSupportedError(f"llama.cpp does not load {path.name}")
        self._model = model
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._context: llama.llama_context_p | None = None
        self._prompts: list[list[int]] = []
        self._switch(llama.LLAMA_FLASH_ATTN_TYPE_ENABLED)

    def _switch(self, flash: int) -> None:
        if self._context is not None:
            llama.llama_free(self._context)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = self._setting.context * self._setting.sequences
        parameters.n_seq_max = self._setting.sequences
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self._setting.threads
        parameters.flash_attn_type = flash
        self._context = llama.llama_init_from_model(self._model, parameters)
        if self._context is None:
            raise NotSupportedError("llama.cpp has no memory for the context")
        self._memory = llama.llama_get_memory(self._context)
        self._prompts = []

    def warm_up(self, prompts: Sequence[Sequence[int]], tokens: int) -> str:
        """Times both kinds of attention, each once after a first run, and stays with the faster."""
        seconds = {}
        for flash in (llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED):
            self._switch(flash)
            for _ in range(2):
                run = self.decode(prompts, tokens) if tokens else self.prefill(prompts[0])
            seconds[flash] = run.seconds
        best = min(seconds, key=lambda flash: seconds[flash])
        if best == llama.LLAMA_FLASH_ATTN_TYPE_ENABLED:
            self._switch(best)
            super().warm_up(prompts, tokens)
        return f"flash attention {'on' if best else 'off'}"

    def prefill(self, prompt: Sequence[int]) -> Run:
        llama.llama_memory_clear(self._memory, False)
        self._prompts = []
        start = time.perf_counter()
        token = self._compute(list(prompt), 0)
        return Run(time.perf_counter() - start, len(prompt), [[token]])

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        if [list(prompt) for prompt in prompts] != self._prompts:
            llama.llama_memory_clear(self._memory, False)
            for sequence, prompt in enumerate(prompts):
                if len(prompt) > 1:
                    self._compute(list(prompt[:-1]), sequence)
            self._prompts = [list(prompt) for prompt in prompts]
        for sequence, prompt in enumerate(prompts):
            llama.llama_memory_seq_rm(self._memory, sequence, len(prompt) - 1, -1)
        rows = self._step([(prompt[-1], len(prompt) - 1, s) for s, prompt in enumerate(prompts)])
        token_ids = [[token] for token in rows]
        start = time.perf_counter()
        for step in range(tokens - 1):
            entries = [(ids[-1], len(prompts[s]) + step, s) for s, ids in enumerate(token_ids)]
            for ids, token in zip(token_ids, self._step(entries), strict=True):
                ids.append(token)
        return Run(time.perf_counter() - start, (tokens - 1) * len(prompts), token_ids)

    def _compute(self, tokens: list[int], sequence: int) -> int:
        """Computes a prompt's tokens in batches; the token that follows."""
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self._fill([(token, start + i, sequence) for i, token in enumerate(part)])
            self._batch.logits[len(part) - 1] = start + len(part) == len(tokens)
            self._decode()
        return self._largest(len(part) - 1)

    def _step(self, entries: list[tuple[int, int, int]]) -> list[int]:
        """One token of each sequence: (token, position, sequence) in, the tokens that follow out."""
        self._fill(entries)
        for row in range(len(entries)):
            self._batch.logits[row] = 1
        self._decode()
        return [self._largest(row) for row in range(len(entries))]

    def _fill(self, entries: list[tuple[int, int, int]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for row, (token, position, sequence) in enumerate(entries):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = 0

    def _decode(self) -> None:
        assert self._context is not None
        if llama.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _largest(self, row: int) -> int:
        assert self._context is not None
        logits = llama.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocabulary,))))
