"""fermi, through its engine: scheduler, batches, sampler and KV blocks as they serve requests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from checkpoints import made_once

import fermi
from contestants.contestant import Contestant, NotSupportedError, Run, Setting
from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import load_model

__all__ = ["VARIANTS", "open", "prepare", "version"]

VARIANTS = {"bf16": ["bf16"], "int8": ["int8"], "int4": ["int4"]}


def version() -> str:
    return str(fermi.__version__)


def prepare(checkpoint: Path, variant: str) -> Path:
    if variant == "bf16":
        return checkpoint

    def quantize(folder: Path) -> None:
        command = [sys.executable, "-m", "fermi", "quantize", str(checkpoint), "--format", variant]
        done = subprocess.run(
            [*command, "--calibrate", "none", "-o", str(folder / "model")], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise NotSupportedError(f"fermi quantize: {(done.stderr.strip().splitlines() or [''])[-1]}")

    return made_once(checkpoint.parent / f"fermi-{variant}", quantize) / "model"


def open(path: Path, variant: str, setting: Setting) -> Contestant:
    return FermiEngine(path, setting)


class FermiEngine(Contestant):
    """An engine whose KV cache holds the setting's sequences."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        backend = _C.open_backend("cpu", threads=setting.threads)
        model = load_model(folder, backend=backend)
        tokens = (setting.context // 16 + 64) * 16 * setting.sequences  # some room, so that prompts stay cached
        config = EngineConfig(
            max_num_seqs=max(16, setting.sequences),
            max_model_len=setting.context,
            kv_cache_memory=tokens * model.kv_spec.bytes_per_token,
        )
        self._engine = Engine(model, config)
        self._weight_bytes, self._token_bytes = model.weight_bytes, model.kv_spec.bytes_per_token
        self._requests = 0

    def prefill(self, prompt: Sequence[int]) -> Run:
        start = time.perf_counter()
        token_ids, times = self._generate([prompt], 1)
        return Run(times[0] - start, len(prompt), token_ids)

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> Run:
        token_ids, times = self._generate(prompts, tokens)
        return Run(times[-1] - times[0], (len(times) - 1) * len(prompts), token_ids)

    def decode_bytes(self, context: int) -> int:
        return self._weight_bytes + context * self._token_bytes

    def _generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[list[int]], list[float]]:
        """The tokens, and the times at the ends of the steps in which every sequence drew one."""
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        drawn: dict[str, list[int]] = {}
        for prompt in prompts:
            self._requests += 1
            drawn[str(self._requests)] = []
            self._engine.add(Request(id=str(self._requests), prompt_token_ids=list(prompt), sampling=sampling))
        times = list[float]()
        while self._engine.has_work:
            events = self._engine.step()
            now = time.perf_counter()
            for event in events:
                if event.error:
                    raise RuntimeError(event.error)
                drawn[event.request_id] += event.token_ids
            if sum(bool(event.token_ids) for event in events) == len(prompts):
                times.append(now)
        return list(drawn.values()), times
