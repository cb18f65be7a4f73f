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
FLASH, PLAIN = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED


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


def without_vocabulary() -> ctypes.Array[llama.llama_model_kv_override]:
    """Overrides that keep it from reading the vocabulary, which prompts of token ids do not need."""
    overrides: ctypes.Array[llama.llama_model_kv_override]
    overrides = (llama.llama_model_kv_override * 2)()  # the second ends the list
    overrides[0].key = b"tokenizer.ggml.model"
    overrides[0].tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"no_vocab"
    return overrides


class LlamaCpp(Contestant):
    """A model, and a context for each kind of attention that is still of interest."""

    def __init__(self, path: Path, setting: Setting) -> None:
        llama.llama_log_set(silent, None)
        llama.llama_backend_init()
        self._setting = setting
        parameters = llama.llama_model_default_params()
        parameters.kv_overrides = without_vocabulary()
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        if self._model is None:
            raise NotSupportedError(f"llama.cpp does not load {path.name}")
        self._context = Context(self._model, FLASH, setting)

    def warm_up(self, prompts: Sequence[Sequence[int]], tokens: int) -> str:
        """Times flash attention on and off, and stays with the faster."""
        candidates = {self._context.flash: self._context}
        seconds = {}
        for flash in (FLASH, PLAIN):
            self._context = candidates.get(flash) or Context(self._model, flash, self._setting)
            candidates[flash] = self._context
            self.decode([[1]] * len(prompts), 4)  # touches all weights
            run = self.decode(prompts, tokens) if tokens else self.prefill(prompts[0])
            seconds[flash] = run.seconds
        best = min(seconds, key=lambda flash: seconds[flash])
        self._context = candidates.pop(best)
        for other in candidates.values():
            other.close()
        return f"flash attention {'on' if best == FLASH else 'off'}"

    def prefill(self, prompt: Sequence[int]) -> Run:
        self._context.forget()
        start = time.perf_counter()
        token = self._context.compute(list(prompt), 0)
        return Run(time.perf_counter() - start, len(prompt), [[token]])

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        token_ids = [[token] for token in self._context.first_tokens([list(prompt) for prompt in prompts])]
        start = time.perf_counter()
        for step in range(tokens - 1):
            entries = [(ids[-1], len(prompts[s]) + step, s) for s, ids in enumerate(token_ids)]
            for ids, token in zip(token_ids, self._context.step(entries), strict=True):
                ids.append(token)
        return Run(time.perf_counter() - start, (tokens - 1) * len(prompts), token_ids)


class Context:
    """The KV cache of some sequences, and the prompts that it holds.

    Attributes:
        flash: the kind of attention.
    """

    def __init__(self, model: llama.llama_model_p, flash: int, setting: Setting) -> None:
        self.flash = flash
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = setting.context * setting.sequences
        parameters.n_seq_max = setting.sequences
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = setting.threads
        parameters.flash_attn_type = flash
        context = llama.llama_init_from_model(model, parameters)
        if context is None:
            raise NotSupportedError("llama.cpp has no memory for the context")
        self._context = context
        self._memory = llama.llama_get_memory(context)
        self._prompts: list[list[int]] = []

    def close(self) -> None:
        """Frees the cache."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def forget(self) -> None:
        """Empties the cache."""
        llama.llama_memory_clear(self._memory, False)
        self._prompts = []

    def first_tokens(self, prompts: list[list[int]]) -> list[int]:
        """The token after each prompt; what the cache holds of the same prompts is used again."""
        if prompts != self._prompts:
            self.forget()
            for sequence, prompt in enumerate(prompts):
                if len(prompt) > 1:
                    self.compute(prompt[:-1], sequence)
            self._prompts = prompts
        for sequence, prompt in enumerate(prompts):
            llama.llama_memory_seq_rm(self._memory, sequence, len(prompt) - 1, -1)
        return self.step([(prompt[-1], len(prompt) - 1, sequence) for sequence, prompt in enumerate(prompts)])

    def compute(self, tokens: list[int], sequence: int) -> int:
        """Computes a prompt's tokens in batches; the token that follows."""
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            last = start + len(part) == len(tokens)
            rows = self._decode([(token, start + i, sequence) for i, token in enumerate(part)], [len(part) - 1] * last)
        return rows[0]

    def step(self, entries: list[tuple[int, int, int]]) -> list[int]:
        """One token of each sequence: (token, position, sequence) in, the tokens that follow out."""
        return self._decode(entries, list(range(len(entries))))

    def _decode(self, entries: list[tuple[int, int, int]], wanted: list[int]) -> list[int]:
        """Computes a batch; the tokens that follow the ``wanted`` rows."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for row, (token, position, sequence) in enumerate(entries):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = 0
        for row in wanted:
            batch.logits[row] = 1
        if llama.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [self._largest(row) for row in wanted]

    def _largest(self, row: int) -> int:
        logits = llama.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocabulary,))))
