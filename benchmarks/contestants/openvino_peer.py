"""OpenVINO GenAI's continuous batching pipeline, which its LLMPipeline runs on the CPU, with prefix caching.

The KV cache has the precision that the CPU plugin chooses: u8.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from checkpoints import made_once

from contestants.contestant import Contestant, Run, Setting
from contestants.openvino_model import write_openvino

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS = {"bf16": ["bf16"], "int8": ["int8"], "int4": ["int4"]}
NO_TOKEN = 2**31
"""There must be an end-of-text token; this one is never drawn."""


def version() -> str:
    return f"openvino-genai {genai.__version__}"


def prepare(checkpoint: Path, variant: str) -> Path:
    return made_once(
        checkpoint.parent / f"openvino-{variant}", lambda folder: write_openvino(checkpoint, folder, variant)
    )


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return OpenVino(path, setting)


class OpenVino(Contestant):
    """A pipeline whose steps are called here; prompts are token ids, so it needs no tokenizer."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = 512
        properties = {"INFERENCE_NUM_THREADS": setting.threads}
        self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        self._requests = 0

    def prefill(self, prompt: Sequence[int]) -> Run:
        start = time.perf_counter()
        token_ids, times = self._generate([prompt], 1)
        return Run(times[0] - start, len(prompt), token_ids)

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        token_ids, times = self._generate(prompts, tokens)
        return Run(times[-1] - times[0], (len(times) - 1) * len(prompts), token_ids)

    def _generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], list[float]]:
        """The tokens, and the times at the ends of the steps in which every sequence drew one."""
        config = genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        config.set_eos_token_id(NO_TOKEN)
        handles = []
        for prompt in prompts:
            self._requests += 1
            ids = ov.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
        token_ids: list[list[int]] = [[] for _ in prompts]
        times = list[float]()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            drew = 0
            for handle, ids in zip(handles, token_ids, strict=True):
                if handle.can_read():
                    drew += 1
                    for output in handle.read().values():
                        ids += map(int, output.generated_ids)
            if drew == len(prompts):
                times.append(now)
        return token_ids, times
