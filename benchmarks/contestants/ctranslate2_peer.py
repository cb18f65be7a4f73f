"""CTranslate2: int8 by row, the prompt kept as a static prompt where decoding starts from a long one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import torch
from checkpoints import made_once
from ctranslate2.converters import transformers as loaders
from transformers import AutoModelForCausalLM

from contestants.contestant import Contestant, NotSupportedError, Run, Setting

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS: dict[str, list[str]] = {"bf16": [], "int8": ["int8"], "int4": []}
LOADERS = {"llama": "LlamaLoader", "mistral": "MistralLoader", "qwen2": "Qwen2Loader", "qwen3": "Qwen3Loader"}


def version() -> str:
    return f"ctranslate2 {ctranslate2.__version__}"


def prepare(checkpoint: Path, variant: str) -> Path:
    return made_once(checkpoint.parent / f"ctranslate2-{variant}", lambda folder: write_ctranslate2(checkpoint, folder))


def write_ctranslate2(checkpoint: Path, folder: Path) -> None:
    """Converts with CTranslate2's own loader for the architecture; the vocabulary is made up: "0", "1", …"""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = model.config
    if config.model_type not in LOADERS:
        raise NotSupportedError(f"CTranslate2 is given no model of type {config.model_type}")
    loader = getattr(loaders, LOADERS[config.model_type])()
    if not hasattr(config, "head_dim"):
        config.head_dim = config.hidden_size // config.num_attention_heads
    spec = loader.get_model_spec(model)
    spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.config.layer_norm_epsilon = config.rms_norm_eps
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(os.fspath(folder))


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return CTranslate2(path, setting)


class CTranslate2(Contestant):
    """A generator; time is told by the callback of each step."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self._generator = ctranslate2.Generator(
            os.fspath(folder), device="cpu", intra_threads=setting.threads, inter_threads=1, compute_type="int8"
        )

    def prefill(self, prompt: Sequence[int]) -> Run:
        start = time.perf_counter()
        token_ids, times = self._generate([list(map(str, prompt))], None, 1)
        return Run(times[0] - start, len(prompt), token_ids)

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        texts = [list(map(str, prompt)) for prompt in prompts]
        if len(texts) == 1 and len(texts[0]) > 1:
            token_ids, times = self._generate([texts[0][-1:]], texts[0][:-1], tokens)
        else:
            token_ids, times = self._generate(texts, None, tokens)
        steps = times[len(prompts) - 1 :: len(prompts)]
        return Run(steps[-1] - steps[0], (len(steps) - 1) * len(prompts), token_ids)

    def _generate(
        self, texts: list[list[str]], before: list[str] | None, tokens: int
    ) -> tuple[list[list[int]], list[float]]:
        times = list[float]()

        def note(_: object) -> bool:
            times.append(time.perf_counter())
            return False

        results = self._generator.generate_batch(
            texts,
            static_prompt=before,
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
            callback=note,
        )
        return [list(map(int, each.sequences[0])) for each in results], times
