"""Greedy tokens through the server are Transformers' own, for each architecture."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
import transformers

from fermi.config import load_settings
from fermi.server.loading import load_served
from models.comparison import reference_greedy
from models.tiny_checkpoints import VARIANTS, VOCABULARY, save
from server.running import Running, serving

NAMES = ("llama grouped", "llama dynamic across", "llama yarn", "mistral window", "qwen2", "qwen3", "qwen3 layer types")
GENERATED = 64


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of words t0, t1, …: the text says which tokens there are."""
    words = {f"t{number}": number for number in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "t0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def references() -> dict[str, transformers.PreTrainedModel]:
    return {name: VARIANTS[name].reference() for name in NAMES}


@pytest.fixture(scope="module")
def server(
    references: dict[str, transformers.PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One server of all of them."""
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "16MiB"}
    settings = load_settings(flags, environ={}, folder=Path("/nonexistent"))
    models = []
    for name, model in references.items():
        folder = save(model, tmp_path_factory.mktemp("checkpoint"))
        save_tokenizer(folder)
        models.append(load_served(f"{name}={folder}", settings))
    with serving(*models) as running:
        yield running


def greedy(server: Running, name: str, stream: bool) -> list[int]:
    tokens = VARIANTS[name].tokens(1)
    body = {"model": name, "prompt": tokens, "max_tokens": GENERATED, "temperature": 0}
    if stream:
        chunks = server.openai().completions.create(stream=True, **body)  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].text for chunk in chunks)
    else:
        text = server.openai().completions.create(**body).choices[0].text  # type: ignore[call-overload]
    return [int(word.removeprefix("t")) for word in text.split()]


def test_greedy_tokens(server: Running, references: dict[str, transformers.PreTrainedModel]) -> None:
    """All models at once, each streamed and not."""
    asked = [(name, stream) for name in NAMES for stream in (False, True)]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda each: greedy(server, *each), asked))
    for (name, _), reply in zip(asked, replies, strict=True):
        assert reply == reference_greedy(references[name], VARIANTS[name].tokens(1), GENERATED), name
