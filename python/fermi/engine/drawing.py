"""From a step's logits to its tokens and their log-probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Set

import numpy as np
import numpy.typing as npt

from fermi.engine._sampler import Draws, Sampler
from fermi.engine.event import TokenLogprobs
from fermi.engine.masks import Masks, StepMasks, Words
from fermi.engine.plan import Plan, StepOutput
from fermi.engine.sequence import Sequence

__all__ = ["Drawing"]

Logits = npt.NDArray[np.float32]

_SEED_BITS = 2**64 - 1
_NEVER = 2**63 - 1  # more tokens than can be


class Drawing:
    """Draws every token of a step at once, without the GIL; what fails for one sequence fails for it alone."""

    def __init__(self, vocab_size: int, threads: int = 1) -> None:
        self._sampler = Sampler(vocab_size, threads)
        self._masks = Masks(vocab_size)

    def start(self, plan: Plan) -> StepMasks:
        """Starts on what may be drawn, before the logits are known."""
        return self._masks.start(plan.drawing())

    def draw(self, plan: Plan, logits: Logits, masks: StepMasks) -> StepOutput:
        """The step's output. ``logits`` [rows, vocab]: for each work what it scores, then its last if it draws."""
        output = StepOutput()
        sequences: list[Sequence] = []
        rows: list[int] = []
        row = 0
        for number, work in enumerate(plan.work):
            if work.scores:
                wanted = work.sequence.group.request.sampling.prompt_logprobs or 0
                targets = work.sequence.token_ids[work.scored + 1 : work.scored + work.scores + 1].tolist()
                scored = self._measure(logits, list(range(row, row + work.scores)), targets, wanted)
                output.prompt_logprobs[number] = scored
                row += work.scores
            if work.draws:
                sequences += work.draws
                rows += [row] * len(work.draws)
                row += 1
        draws = [sequence.draws or self._start(sequence) for sequence in sequences]
        self._bound(sequences, draws, masks, output)
        output.token_ids = self._sampler.sample(logits, rows, draws)
        for place in output.errors:
            output.token_ids[place] = -1
        self._accept(sequences, draws, output)
        self._add_logprobs(sequences, rows, logits, output)
        return output

    def _start(self, sequence: Sequence) -> Draws:
        request, vocab = sequence.group.request, self._sampler.vocab_size
        sampling = request.sampling
        ends = _ends(sequence) if sequence.constraint is None else []  # else the mask has them
        sequence.draws = Draws(
            vocab_size=vocab,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed & _SEED_BITS,
            stream=sequence.index,
            min_tokens=min(sampling.min_tokens, _NEVER),
            stop_token_ids=[token_id for token_id in ends if token_id < vocab],
            prompt_token_ids=request.prompt_token_ids,
        )
        return sequence.draws

    def _bound(self, sequences: list[Sequence], draws: list[Draws], masks: StepMasks, output: StepOutput) -> None:
        """Lets grammars say what may come next."""
        for place, sequence in enumerate(sequences):
            if sequence.constraint is not None:
                try:
                    draws[place].allow(self._unended(sequence, masks.of(sequence)))
                except Exception as error:
                    output.errors[place] = f"the grammar failed: {error}"

    def _unended(self, sequence: Sequence, mask: Words | None) -> Words | None:
        """A mask without the tokens that may not end the sequence yet, as long as that leaves any.

        A grammar that is complete lets only an end come: then min_tokens and ignore_eos give way.
        """
        sampling = sequence.group.request.sampling
        early: set[int] = set()
        if sequence.output_length < sampling.min_tokens:
            early.update(_ends(sequence))
        if sampling.ignore_eos and mask is not None:
            early |= sequence.group.request.eos_token_ids
        if not early:
            return mask
        vocab = self._sampler.vocab_size
        words = np.full((vocab + 31) // 32, 2**32 - 1, np.uint32) if mask is None else mask.copy()
        for token_id in early:
            if token_id < vocab:
                words[token_id // 32] &= ~np.uint32(1 << (token_id % 32))
        return words if words.any() else mask

    def _accept(self, sequences: list[Sequence], draws: list[Draws], output: StepOutput) -> None:
        for place, (sequence, token_id) in enumerate(zip(sequences, output.token_ids, strict=True)):
            if token_id < 0:
                continue
            draws[place].accept(token_id)
            if sequence.constraint is not None:
                try:
                    sequence.constraint.accept(token_id)
                    if sequence.constraint.complete:
                        output.complete.add(place)
                except Exception as error:
                    output.errors[place] = f"the grammar failed: {error}"
                    output.token_ids[place] = -1

    def _add_logprobs(self, sequences: list[Sequence], rows: list[int], logits: Logits, output: StepOutput) -> None:
        places: dict[int, list[int]] = {}  # by how many likeliest tokens are wanted
        for place, sequence in enumerate(sequences):
            wanted = sequence.group.request.sampling.logprobs
            if wanted is not None and output.token_ids[place] >= 0:
                places.setdefault(wanted, []).append(place)
        for wanted, chosen in places.items():
            token_ids = [output.token_ids[place] for place in chosen]
            measured = self._measure(logits, [rows[place] for place in chosen], token_ids, wanted)
            output.logprobs.update(zip(chosen, measured, strict=True))

    def _measure(self, logits: Logits, rows: list[int], token_ids: list[int], top: int) -> list[TokenLogprobs]:
        values, ranks, top_ids, top_values = self._sampler.log_probabilities(logits, rows, token_ids, top)
        tops = zip(top_ids.tolist(), top_values.tolist(), strict=True)
        return [
            TokenLogprobs(token_id, value, rank, [pair for pair in zip(*likeliest, strict=True) if pair[0] >= 0])
            for token_id, value, rank, likeliest in zip(token_ids, values.tolist(), ranks.tolist(), tops, strict=True)
        ]


def _ends(sequence: Sequence) -> Set[int]:
    """The tokens that end a sequence, and so do not come before ``min_tokens``."""
    request = sequence.group.request
    sampling = request.sampling
    return sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | request.eos_token_ids
