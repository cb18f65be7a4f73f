"""LLM.embed, LLM.score and ``fermi embed``, against sentence-transformers."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers

from fermi import LLM, EmbeddingOutput
from fermi.cli import main
from fermi.errors import ContextLengthError, RequestError
from tiny_embedders import TEXTS, save_answering_reranker, save_cross_encoder, save_decoder, save_embedder

Reference = tuple[LLM, sentence_transformers.SentenceTransformer]
PROMPTS = {"prompts": {"query": "query: ", "document": "words: "}}


def vectors(outputs: list[EmbeddingOutput]) -> np.ndarray:
    return np.stack([output.embedding for output in outputs])


@pytest.fixture(scope="module", params=["bert", "xlm_roberta", "roberta"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp(request.param)
    reference = save_embedder(request.param, folder, **PROMPTS)
    return LLM(folder / "model", threads=2), reference


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One whose vectors are not of unit length."""
    folder = tmp_path_factory.mktemp("plain")
    reference = save_embedder("bert", folder, normalized=False)
    return LLM(folder / "model", threads=2), reference


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo", threads=1)


def test_texts_become_the_vectors_of_sentence_transformers(embedder: Reference) -> None:
    llm, reference = embedder
    outputs = llm.embed(TEXTS, use_tqdm=False)
    np.testing.assert_allclose(vectors(outputs), reference.encode(TEXTS), atol=1e-5)
    assert outputs[0].embedding.dtype == np.float32
    assert outputs[0].prompt_token_ids == reference.preprocess([TEXTS[0]])["input_ids"][0].tolist()
    assert len(outputs[3].prompt_token_ids) == 64  # a text that is too long is cut, as there


def test_prompts_by_name_and_by_text(embedder: Reference) -> None:
    llm, reference = embedder
    for name in ("query", "document"):
        found = vectors(llm.embed(TEXTS, prompt_name=name, use_tqdm=False))
        np.testing.assert_allclose(found, reference.encode(TEXTS, prompt_name=name), atol=1e-5)
    own = vectors(llm.embed(TEXTS, prompt="quick ", prompt_name="query", use_tqdm=False))
    np.testing.assert_allclose(own, reference.encode(TEXTS, prompt="quick "), atol=1e-5)
    with pytest.raises(RequestError, match="no prompt 'other'"):
        llm.embed("x", prompt_name="other")


def test_score_is_the_cosine_of_a_query_and_a_document(embedder: Reference) -> None:
    llm, reference = embedder
    queries, documents = TEXTS[:3], TEXTS[3:]
    left, right = reference.encode_query(queries), reference.encode_document(documents)
    np.testing.assert_allclose(llm.score(queries, documents, use_tqdm=False), (left * right).sum(1), atol=1e-5)
    one = llm.score(queries[0], documents, use_tqdm=False)
    np.testing.assert_allclose(one, right @ left[0], atol=1e-5)
    assert (one.dtype, one.shape) == (np.float32, (3,))
    with pytest.raises(RequestError, match="2 queries and 3 documents"):
        llm.score(queries[:2], documents)


def test_one_text_alone_gives_what_it_gives_among_others(embedder: Reference) -> None:
    llm, _ = embedder
    together = vectors(llm.embed(TEXTS, use_tqdm=False))
    for place, text in enumerate(TEXTS):
        alone = vectors(llm.embed(text, use_tqdm=False))
        np.testing.assert_allclose(alone[0], together[place], atol=1e-6)


def test_token_ids_are_taken_as_they_are(embedder: Reference) -> None:
    llm, _ = embedder
    outputs = llm.embed(TEXTS[:3], use_tqdm=False)
    ids = [output.prompt_token_ids for output in outputs]
    np.testing.assert_array_equal(vectors(llm.embed(ids, use_tqdm=False)), vectors(outputs))
    np.testing.assert_array_equal(llm.embed(ids[0], use_tqdm=False)[0].embedding, outputs[0].embedding)


def test_length_one_and_fewer_dimensions(plain: Reference) -> None:
    llm, reference = plain
    raw = reference.encode(TEXTS)
    np.testing.assert_allclose(vectors(llm.embed(TEXTS, use_tqdm=False)), raw, atol=1e-5)
    unit = reference.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(vectors(llm.embed(TEXTS, normalize=True, use_tqdm=False)), unit, atol=1e-5)
    short = reference.encode(TEXTS, truncate_dim=10)
    kept = vectors(llm.embed(TEXTS, dimensions=10, normalize=False, use_tqdm=False))
    np.testing.assert_allclose(kept, short, atol=1e-5)
    found = vectors(llm.embed(TEXTS, dimensions=10, use_tqdm=False))
    np.testing.assert_allclose(found, short / np.linalg.norm(short, axis=1, keepdims=True), atol=1e-5)
    for dimensions in (0, 65, "8"):
        with pytest.raises(RequestError) as caught:
            llm.embed("x", dimensions=dimensions, use_tqdm=False)  # type: ignore[arg-type]
        assert caught.value.param == "dimensions"


def test_what_is_too_long_is_refused_where_it_is_not_to_be_cut(plain: Reference) -> None:
    llm, _ = plain
    with pytest.raises(ContextLengthError, match="maximum context length is 64 tokens"):
        llm.embed(["x", "word " * 100], truncate=False, use_tqdm=False)
    with pytest.raises(ContextLengthError):
        llm.embed([[5] * 65], truncate=False, use_tqdm=False)
    assert len(llm.embed([[5] * 65], use_tqdm=False)[0].prompt_token_ids) == 64
    with pytest.raises(ContextLengthError):
        llm.score("x", "word " * 100, truncate=False)


@pytest.mark.parametrize("texts", [5, [5.5], [None], ["x", {}], [["x"]], [[]], [[-1]]], ids=str)
def test_what_is_no_text_is_refused(plain: Reference, texts: object) -> None:
    with pytest.raises(RequestError) as caught:
        plain[0].embed(texts, use_tqdm=False)  # type: ignore[arg-type]
    assert caught.value.param == "texts"


def test_nothing_and_the_empty_text(plain: Reference) -> None:
    llm, reference = plain
    assert llm.embed([], use_tqdm=False) == []
    assert llm.score([], [], use_tqdm=False).shape == (0,)
    np.testing.assert_allclose(vectors(llm.embed("", use_tqdm=False))[0], reference.encode(""), atol=1e-5)


def test_threads_take_turns(plain: Reference) -> None:
    llm, _ = plain
    expected = vectors(llm.embed(TEXTS, use_tqdm=False))
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(lambda _: llm.embed(TEXTS, use_tqdm=False), range(8)):
            np.testing.assert_array_equal(vectors(outputs), expected)


@pytest.mark.parametrize("tokens", [1, 64, 100_000])
def test_the_size_of_batches_changes_no_vector(tokens: int, tmp_path: Path) -> None:
    reference = save_embedder("bert", tmp_path, normalized=False)
    other = LLM(tmp_path / "model", threads=2, max_num_batched_tokens=tokens, max_num_seqs=1)
    np.testing.assert_allclose(vectors(other.embed(TEXTS, use_tqdm=False)), reference.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(("labels", "name"), [(1, "bert"), (1, "xlm_roberta"), (3, "bert")])
def test_cross_encoders_score_pairs(labels: int, name: str, tmp_path: Path) -> None:
    reference = save_cross_encoder(name, tmp_path, labels=labels)
    llm = LLM(tmp_path, threads=2)
    pairs = [(query, document) for query in TEXTS for document in TEXTS]
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
    found = llm.score(queries, documents, use_tqdm=False)
    assert found.shape == ((36,) if labels == 1 else (36, labels))
    np.testing.assert_allclose(found, reference.predict(pairs), atol=1e-5)
    with pytest.raises(RequestError, match="is a cross-encoder: it scores pairs of texts, use score"):
        llm.embed("x")
    with pytest.raises(RequestError, match=r"is a cross-encoder and generates no text: use LLM\.score"):
        llm.generate("x")


def test_an_embedder_does_not_generate(plain: Reference) -> None:
    llm, _ = plain
    message = r"is an embedding model and generates no text: use LLM\.embed or LLM\.score"
    for call in (
        lambda: llm.generate("x"),
        lambda: llm.chat([{"role": "user", "content": "x"}]),
        lambda: llm.logits([1]),
        lambda: llm.perplexity("x y"),
    ):
        with pytest.raises(RequestError, match=message):
            call()


def test_a_model_that_generates_does_not_embed(demo: LLM) -> None:
    for call in (lambda: demo.embed("x"), lambda: demo.score("x", "y")):
        with pytest.raises(RequestError, match=r"demo generates text and has no pooling .* use LLM\.generate or LLM"):
            call()


def test_a_decoder_can_be_told_to_embed_or_to_score(tmp_path: Path) -> None:
    save_decoder(tmp_path)
    assert LLM(tmp_path, threads=1).generate("x", use_tqdm=False)[0].outputs[0].token_ids
    embedder = LLM(tmp_path, threads=1, task="embed")
    found = vectors(embedder.embed(TEXTS, use_tqdm=False))
    assert found.shape == (len(TEXTS), 32)
    assert np.isfinite(found).all()
    scores = LLM(tmp_path, threads=1, task="score").score(TEXTS[0], TEXTS, use_tqdm=False)
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) > 1


def test_a_reranker_that_answers_yes_or_no(tmp_path: Path) -> None:
    reference = save_answering_reranker(tmp_path)
    llm = LLM(tmp_path / "model", threads=2)
    pairs = [(query, document) for query in TEXTS for document in TEXTS]
    found = llm.score([query for query, _ in pairs], [document for _, document in pairs], use_tqdm=False)
    np.testing.assert_allclose(found, reference.predict(pairs), atol=1e-5)


def test_the_command_line_prints_a_line_for_each_text(
    plain: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, _ = plain
    reference = save_embedder("bert", tmp_path, normalized=False)
    model = str(tmp_path / "model")
    assert main(["embed", "--model", model, "--threads", "1", "fox", "dog"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    np.testing.assert_allclose([line["embedding"] for line in lines], reference.encode(["fox", "dog"]), atol=1e-5)
    monkeypatch.setattr("sys.stdin", io.StringIO("fox\ndog\n"))
    assert main(["embed", "--model", model, "--dimensions", "8", "--prompt", "a "]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = vectors(llm.embed(["a fox", "a dog"], dimensions=8, use_tqdm=False))
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, atol=1e-5)
    assert main(["embed", "--model", "demo", "fox"]) == 1
    assert "does not embed" in capsys.readouterr().err
    assert main(["generate", "--model", model, "fox"]) == 1
    assert "is an embedding model and generates no text" in capsys.readouterr().err
