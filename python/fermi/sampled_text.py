"""Text that a model makes up, unasked, at temperature 1: what it knows, where there is no text to evaluate it on."""

from __future__ import annotations

from fermi.engine.engine import Engine
from fermi.engine.sequence import Request
from fermi.sampling_params import SamplingParams
from fermi.text.tokenizer import Tokenizer

__all__ = ["sampled_text"]


def sampled_text(engine: Engine, tokenizer: Tokenizer, *, texts: int, tokens: int, seed: int) -> list[list[int]]:
    """So many texts of so many token ids each; the same for the same model and seed.

    A text goes on behind an end of text, as texts in training do.
    """
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else tokenizer.encode("The")[:1]
    tokens = min(tokens, engine.max_model_len)
    found = {str(number): list(begin) for number in range(texts)}
    for number, name in enumerate(found):
        limit = max(1, tokens - len(begin))
        params = SamplingParams(temperature=1.0, seed=seed + number, max_tokens=limit, ignore_eos=True)
        engine.add(
            Request(
                id=name,
                prompt_token_ids=begin,
                sampling=params.sampling(max_tokens=limit),
                eos_token_ids=tokenizer.eos_token_ids,
            )
        )
    while engine.has_work:
        for event in engine.step():
            found[event.request_id] += event.token_ids
    return list(found.values())
