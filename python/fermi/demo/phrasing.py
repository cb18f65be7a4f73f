"""Phrasing: a pattern with alternatives that stands for many wordings of one request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

# Alternatives that many patterns share; a pattern names one as `<how>`.
SLOTS = {
    "how": "(how do i|how can i|how to|how should i|how does one|how would i|how do you|what is the way to"
    "|tell me how to|show me how to|explain how to|can you explain how to|i want to|i need to|i would like to|help me)",
    "what": "(what is|what's|what are|tell me|explain|describe|which is|please explain|do you know|i want to know"
    "|show me)",
    "can": "(can i|may i|is it possible to|could i|am i able to|is there a way to)",
    "does": "(does it|does fermi|can fermi|can it|will fermi|will it)",
    "fermi": "(fermi|fermi|fermi|fermi|the engine|this engine|the package)",
    "server": "(server|server|fermi server|api server|http server|service)",
    "mean": "(what does|what did|why do i get|why did i get|i get|i got|what to do about|how to fix|why is there"
    "|what is)",
}

_SLOT = re.compile(r"<(\w+)>")
_CHOICE = re.compile(r"\(([^()]*)\)")
_WORD = re.compile(r"[a-z0-9]+")


def with_slots(pattern: str) -> str:
    """The pattern with every `<slot>` replaced by its alternatives."""
    return _SLOT.sub(lambda match: SLOTS[match.group(1)], pattern)


def sample(pattern: str, random: Random) -> str:
    """One wording of the pattern, each `(a|b|)` decided by `random`."""
    text = _CHOICE.sub(lambda match: random.choice(match.group(1).split("|")), with_slots(pattern))
    return " ".join(text.split())


def wordings(pattern: str) -> Iterator[str]:
    """Every wording of the pattern."""
    pattern = with_slots(pattern)
    match = _CHOICE.search(pattern)
    if match is None:
        yield " ".join(pattern.split())
        return
    for alternative in match.group(1).split("|"):
        yield from wordings(pattern[: match.start()] + alternative + pattern[match.end() :])


def normalized(text: str) -> str:
    """The words of a text in lower case: two wordings that agree in it count as the same."""
    return " ".join(_WORD.findall(text.lower()))


def spoken(text: str, random: Random) -> str:
    """A wording as somebody might type it: capitals, a question mark, politeness, a small slip."""
    words = text.split()
    if random.random() < 0.5 and len(words) > 2:
        for _ in range(random.randint(1, 2)):
            words = random.choice((_without_word, _without_word, _with_filler, _with_swap))(words, random)
    if random.random() < 0.08:
        index = random.randrange(len(words))
        words[index] = _slip(words[index], random)
    text = " ".join(words)
    if random.random() < 0.75:
        text = _WRITTEN_WORD.sub(lambda match: _WRITTEN[match.group(0)], text)
    if random.random() < 0.3:
        text = random.choice(_BEFORE) + text
    if random.random() < 0.2:
        text = text + random.choice(_AFTER)
    if random.random() < 0.7:
        text = text[:1].upper() + text[1:]
    return text + random.choice(("?", "?", "?", "", "", ".", "!"))


# Words that are written with capitals; a careful writer uses them, a hasty one does not.
_CAPITALS = """
I I'm I'd GPU CPU API APIs HTTP URL URLs JSON SSE RAM KV ARM AVX2 AVX-512 NEON AMD Intel SIMD AI SDK GPT ChatGPT
OpenAI Python Llama Mistral Qwen Qwen2 Qwen3 SIGTERM HF TOML LLM Apache Apache-2.0 Google Meta Anthropic HF_TOKEN
FERMI_OFFLINE FERMI_CONFIG FERMI_TIMEOUT_MS FERMI_OPENAI_ADDR FERMI_DEFAULT_SYSTEM_PROMPT
FERMI_DEFAULT_MAX_NEW_TOKENS German French Spanish Chinese English Italian Russian Japanese Deutsch France Germany
Italy Spain Japan China Poland Norway England Kenya Brazil Canada Einstein Newton Mozart Napoleon Plato Shakespeare
Rome Christmas Easter America Paris Mars Earth Anna Ben Retry-After
"""
_WRITTEN = {word.lower(): word for word in _CAPITALS.split()}
_WRITTEN_WORD = re.compile(
    r"(?<![\w-])(?:" + "|".join(sorted(map(re.escape, _WRITTEN), key=len, reverse=True)) + r")(?![\w-])"
)
_BEFORE = (
    "please, ", "please ", "hey, ", "hi, ", "hello, ", "can you tell me ", "could you tell me ", "quick question: ",
    "i am new here, ", "sorry, ", "so ", "and ", "ok, ", "i wonder: ", "one more thing: ", "question: ",
    "i'd like to know ",
    "could you say ", "do you know ", "in short, ",
)  # fmt: skip
_AFTER = (
    ", please", " please", " exactly", " again", " for me", ", thanks", " today", " here", " now", " in fermi",
    " with fermi",
)  # fmt: skip
_FILLERS = (
    "the", "a", "my", "this", "your", "some", "really", "just", "exactly", "of", "to", "for", "me", "in", "is",
    "it", "that", "please",
    "actually", "here", "now", "be", "can", "there", "any", "on", "with", "would", "which", "when", "if", "one",
    "get", "kind", "by",
)  # fmt: skip


def _without_word(words: list[str], random: Random) -> list[str]:
    index = random.randrange(len(words))
    return words[:index] + words[index + 1 :] if len(words) > 2 else words


def _with_filler(words: list[str], random: Random) -> list[str]:
    index = random.randrange(len(words) + 1)
    return [*words[:index], random.choice(_FILLERS), *words[index:]]


def _with_swap(words: list[str], random: Random) -> list[str]:
    index = random.randrange(len(words) - 1)
    return [*words[:index], words[index + 1], words[index], *words[index + 2 :]]


def _slip(word: str, random: Random) -> str:
    if len(word) < 4:
        return word
    index = random.randrange(1, len(word) - 1)
    return word[:index] + random.choice((word[index + 1 :], word[index + 1] + word[index] + word[index + 2 :]))
