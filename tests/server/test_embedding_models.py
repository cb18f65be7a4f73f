"""Several real models in one server: the demo model, tiny embedders and a cross-encoder, asked at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

from fermi.config import load_settings
from fermi.server.configured import model_names
from fermi.server.loading import load_served
from server.running import Running, serving
from server.test_embeddings import ask, refused
from tiny_embedders import TEXTS, save_cross_encoder, save_embedder

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
References = tuple[sentence_transformers.SentenceTransformer, sentence_transformers.CrossEncoder]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, References]:
    folder = tmp_path_factory.mktemp("models")
    prompts = {"query": "query: ", "document": "words: "}
    embedder = save_embedder("bert", folder / "bert", prompts=prompts)
    return folder, (embedder, save_cross_encoder("xlm_roberta", folder / "cross"))


@pytest.fixture(scope="module")
def server(references: tuple[Path, References]) -> Iterator[Running]:
    folder, _ = references
    flags = {
        "model.id": "demo",
        "model.also": (f"embedder={folder / 'bert' / 'model'}", str(folder / "cross"), "second=demo"),
        "engine.threads": 1,
        "cache.kv_cache_memory": "16MiB",
    }
    settings = load_settings(flags, environ={}, folder=Path("/nonexistent"))
    with serving(*[load_served(name, settings) for name in model_names(settings)]) as running:
        yield running


def test_all_models_are_listed(server: Running) -> None:
    models = {model.id: model.model_extra for model in server.openai().models.list().data}
    assert list(models) == ["demo", "embedder", "cross", "second"]
    assert models["embedder"] == models["cross"] == {"max_model_len": 64, "state": "loaded"}
    with server.http() as http:
        assert http.get("/ready").json() == {"status": "ready", "model_loaded": True}


def test_vectors_are_those_of_sentence_transformers(server: Running, references: tuple[Path, References]) -> None:
    _, (embedder, _) = references
    short = [text for text in TEXTS if len(text) < 100]
    data = server.openai().embeddings.create(model="embedder", input=short).data
    np.testing.assert_allclose([each.embedding for each in data], embedder.encode(short), atol=1e-5)
    found = ask(server, "/v1/embeddings", model="embedder", input=TEXTS, truncate_prompt_tokens=-1, prompt_name="query")
    vectors = [each["embedding"] for each in found["data"]]
    np.testing.assert_allclose(vectors, embedder.encode_query(TEXTS), atol=1e-5)
    error = refused(server, "/v1/embeddings", model="embedder", input=TEXTS)
    assert error["code"] == "context_length_exceeded"


def test_ranks_are_those_of_the_cross_encoder(server: Running, references: tuple[Path, References]) -> None:
    _, (_, cross) = references
    expected = cross.rank(TEXTS[0], TEXTS)
    document = ask(server, "/v1/rerank", model="cross", query=TEXTS[0], documents=TEXTS)
    assert [each["index"] for each in document["results"]] == [each["corpus_id"] for each in expected]
    scores = [each["relevance_score"] for each in document["results"]]
    np.testing.assert_allclose(scores, [each["score"] for each in expected], atol=1e-5)


def test_generators_embedder_and_cross_encoder_at_once(server: Running, references: tuple[Path, References]) -> None:
    _, (embedder, cross) = references
    client = server.openai()
    vectors = embedder.encode(TEXTS[:3])
    scores = cross.predict([(TEXTS[0], text) for text in TEXTS])

    def chat(model: str) -> None:
        reply = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)  # type: ignore[arg-type]
        assert "7" in (reply.choices[0].message.content or "")

    def embed() -> None:
        data = client.embeddings.create(model="embedder", input=TEXTS[:3]).data
        np.testing.assert_allclose([each.embedding for each in data], vectors, atol=1e-5)

    def score() -> None:
        body: dict[str, Any] = {"text_1": TEXTS[0], "text_2": TEXTS, "truncate_prompt_tokens": -1}
        found = ask(server, "/v1/score", model="cross", **body)
        np.testing.assert_allclose([each["score"] for each in found["data"]], scores, atol=1e-5)

    calls = [lambda: chat("demo"), embed, score, lambda: chat("second")] * 8
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def test_a_quantized_embedder_stays_near(references: tuple[Path, References]) -> None:
    folder, (embedder, _) = references
    flags = {"model.id": str(folder / "bert" / "model"), "engine.threads": 1, "engine.quantization": "int8"}
    settings = load_settings(flags, environ={}, folder=Path("/nonexistent"))
    with serving(load_served(flags["model.id"], settings)) as running:
        data = ask(running, "/v1/embeddings", input=TEXTS[:3])["data"]
    cosines = (np.array([each["embedding"] for each in data]) * embedder.encode(TEXTS[:3])).sum(1)
    assert cosines.min() > 0.99
