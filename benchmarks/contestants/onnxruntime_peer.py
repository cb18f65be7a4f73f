"""ONNX Runtime GenAI: models of its own builder, blocks of 32 weights, activations in int8 (its default on the CPU)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from checkpoints import made_once

from contestants.contestant import Contestant, NotSupportedError, Run, Setting
from contestants.made_up_tokenizer import with_tokenizer

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS: dict[str, list[str]] = {"bf16": [], "int8": ["int8"], "int4": ["int4"]}


def version() -> str:
    return f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}"


def prepare(checkpoint: Path, variant: str) -> Path:
    return made_once(checkpoint.parent / f"onnxruntime-{variant}", lambda folder: build(checkpoint, folder, variant))


def build(checkpoint: Path, folder: Path, variant: str) -> None:
    """Runs the model builder. The head computes the last token of a prompt only, as in the other engines."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "source")
        source.mkdir()
        with_tokenizer(checkpoint, source)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", variant]
        paths = ["-i", os.fspath(source), "-o", os.fspath(folder), "-c", os.fspath(Path(temporary, "cache"))]
        done = subprocess.run(
            [*builder, *paths, "--extra_options", "prune_lm_head=true", "hf_token=false"],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise NotSupportedError(f"its model builder failed: {done.stderr.strip().splitlines()[-1]}")


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return OnnxRuntime(path, setting)


class OnnxRuntime(Contestant):
    """A model, and the generator of the last decoded prompts, which is rewound to go on from them."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        config = genai.Config(os.fspath(folder))
        options = {"intra_op_num_threads": setting.threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = genai.Model(config)
        self._setting = setting
        self._prompts: list[list[int]] = []
        self._generator: genai.Generator | None = None

    def prefill(self, prompt: Sequence[int]) -> Run:
        self._generator, self._prompts = None, []
        start = time.perf_counter()
        generator = self._start([list(prompt)])
        token_ids = self._step(generator)
        return Run(time.perf_counter() - start, len(prompt), [token_ids])

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        same = [list(prompt) for prompt in prompts] == self._prompts
        if not same or self._generator is None or len(prompts) > 1:  # a batch cannot be rewound
            self._prompts = [list(prompt) for prompt in prompts]
            self._generator = None
            self._generator = self._start(self._prompts)
        else:
            self._generator.rewind_to(len(prompts[0]) - 1)
            self._generator.append_tokens(np.array([prompt[-1:] for prompt in prompts], np.int32))
        token_ids = [[token] for token in self._step(self._generator)]
        start = time.perf_counter()
        for _ in range(tokens - 1):
            for ids, token in zip(token_ids, self._step(self._generator), strict=True):
                ids.append(token)
        return Run(time.perf_counter() - start, (tokens - 1) * len(prompts), token_ids)

    def _start(self, prompts: list[list[int]]) -> genai.Generator:
        parameters = genai.GeneratorParams(self._model)
        context = self._setting.context
        parameters.set_search_options(do_sample=False, max_length=context, min_length=context, batch_size=len(prompts))
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator

    def _step(self, generator: genai.Generator) -> list[int]:
        generator.generate_next_token()
        return [int(token) for token in generator.get_next_tokens()]
