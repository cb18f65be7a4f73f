"""Cross-encoders against Transformers: heads upon encoders and decoders, rerankers that answer yes or no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fermi import _C
from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models import TokenSequence, is_embedding_model, load_embedding_model
from fermi.quantization import Packer, Recipe
from models.comparison import cosine, largest_error
from models.tiny_checkpoints import Variant
from models.tiny_encoders import ENCODER_VARIANTS, VOCABULARY, EncoderVariant

Scores = npt.NDArray[np.float32]

LENGTHS = [2, 5, 33, 64]

YES, NO = 11, 150


def reference_logits(model: transformers.PreTrainedModel, sequence: TokenSequence) -> Scores:
    inputs = {"input_ids": torch.tensor([sequence.token_ids])}
    if sequence.type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([sequence.type_ids])
    with torch.no_grad():
        logits: Scores = model(**inputs).logits[0].float().numpy()
    return logits


def sigmoid(x: Scores) -> Scores:
    return 1 / (1 + np.exp(-x))


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def save_tokenizer(folder: Path) -> None:
    """One that knows the words yes and no; no test tokenizes with it."""
    words = {{YES: "yes", NO: "no"}.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0", unk_token="w0"
    )
    tokenizer.save_pretrained(folder)


CLASSIFIERS = {
    "bert": (ENCODER_VARIANTS["bert"], 1),
    "bert three labels": (ENCODER_VARIANTS["bert odd sizes"], 3),
    "roberta": (ENCODER_VARIANTS["roberta"], 1),
    "xlm-roberta": (ENCODER_VARIANTS["xlm-roberta"], 2),
    "distilbert": (ENCODER_VARIANTS["distilbert"], 1),
    "mpnet": (ENCODER_VARIANTS["mpnet"], 1),
    "modernbert": (ENCODER_VARIANTS["modernbert"], 1),
    "modernbert mean": (
        EncoderVariant(
            "ModernBert",
            {
                "classifier_pooling": "mean",
                "classifier_bias": True,
                "norm_bias": True,
                "classifier_activation": "relu",
                "local_attention": 8,
            },
        ),
        4,
    ),
    "nomic-bert": (ENCODER_VARIANTS["nomic-bert"], 1),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_heads_of_encoders(name: str, backend: _C.Backend, tmp_path: Path) -> None:
    variant, labels = CLASSIFIERS[name]
    model = variant.reference("ForSequenceClassification", num_labels=labels)
    model.save_pretrained(tmp_path)
    assert is_embedding_model(tmp_path)
    loaded = load_embedding_model(tmp_path, backend=backend)
    assert (loaded.task, loaded.dim, loaded.needs_type_ids) == ("score", labels, variant.types > 1)
    sequences = variant.sequences(LENGTHS)
    expected = np.stack([reference_logits(model, sequence) for sequence in sequences])
    assert largest_error(loaded.encode(sequences), sigmoid(expected) if labels == 1 else expected) <= 1e-4


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["bert three labels", "modernbert mean"])
def test_heads_in_half_precision(name: str, dtype: str, backend: _C.Backend, tmp_path: Path) -> None:
    variant, labels = CLASSIFIERS[name]
    model = variant.reference("ForSequenceClassification", gain=1.0, num_labels=labels)
    model.save_pretrained(tmp_path)
    sequences = variant.sequences(LENGTHS)
    expected = np.stack([reference_logits(model, sequence) for sequence in sequences])
    for transform in (None, Packer(Recipe(format="int8"), backend=backend)):
        loaded = load_embedding_model(tmp_path, backend=backend, dtype=dtype, transform=transform)
        assert cosine(loaded.encode(sequences), expected) >= (0.999 if transform is None else 0.99)


@pytest.mark.parametrize(
    ("settings", "config", "activation"),
    [
        ({}, {}, sigmoid),
        ({}, {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4"}}, None),
        ({}, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, None),
        ({}, {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, np.tanh),
        ({"activation_fn": "torch.nn.modules.linear.Identity"}, {}, None),
        (
            {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            sigmoid,
        ),
    ],
)
def test_activations(
    settings: dict[str, Any], config: dict[str, Any], activation: Any, backend: _C.Backend, tmp_path: Path
) -> None:
    variant = ENCODER_VARIANTS["bert"]
    model = variant.reference("ForSequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path)
    change(tmp_path, **config)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    sequences = variant.sequences(LENGTHS)
    expected = np.stack([reference_logits(model, sequence) for sequence in sequences])
    scores = load_embedding_model(tmp_path, backend=backend).encode(sequences)
    assert largest_error(scores, expected if activation is None else activation(expected)) <= 1e-4


def test_an_activation_that_is_not_known(backend: _C.Backend, tmp_path: Path) -> None:
    ENCODER_VARIANTS["bert"].reference("ForSequenceClassification", num_labels=1).save_pretrained(tmp_path)
    change(tmp_path, sbert_ce_default_activation_function="torch.nn.modules.activation.Softmax")
    with pytest.raises(UnsupportedModelError, match=r"sbert_ce_default_activation_function is .*Softmax"):
        load_embedding_model(tmp_path, backend=backend)


def test_a_head_that_does_not_fit(backend: _C.Backend, tmp_path: Path) -> None:
    ENCODER_VARIANTS["bert"].reference("ForSequenceClassification", num_labels=3).save_pretrained(tmp_path)
    change(tmp_path, id2label={"0": "a"}, label2id={"a": 0})
    with pytest.raises(CheckpointError, match=r"classifier.weight is \[3, 64\], not \[1, 64\]"):
        load_embedding_model(tmp_path, backend=backend)


def test_what_sentence_transformers_saves(backend: _C.Backend, tmp_path: Path) -> None:
    variant = ENCODER_VARIANTS["bert"]
    model = variant.reference("ForSequenceClassification", num_labels=1)
    model.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    sentence_transformers.CrossEncoder(str(tmp_path / "plain"), device="cpu").save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").is_file()
    loaded = load_embedding_model(tmp_path / "saved", backend=backend)
    assert (loaded.task, loaded.dim) == ("score", 1)
    sequences = variant.sequences(LENGTHS)
    expected = np.stack([reference_logits(model, sequence) for sequence in sequences])
    assert largest_error(loaded.encode(sequences), sigmoid(expected)) <= 1e-4


def test_scores_of_a_dense_module(backend: _C.Backend, tmp_path: Path) -> None:
    variant = ENCODER_VARIANTS["bert"]
    model = variant.reference()
    model.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    torch.manual_seed(0)
    dense = Dense(64, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(64, "cls"), dense]
    sentence_transformers.CrossEncoder(modules=modules, device="cpu").save(str(tmp_path / "saved"))
    loaded = load_embedding_model(tmp_path / "saved", backend=backend)
    assert (loaded.task, loaded.dim) == ("score", 1)
    sequences = variant.sequences(LENGTHS)
    with torch.no_grad():
        states = [
            model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).last_hidden_state[0, 0]
            for ids, types in sequences
        ]
        expected = torch.sigmoid(dense.linear(torch.stack(states))).numpy()
    assert largest_error(loaded.encode(sequences), expected) <= 1e-4


def decoder_sequences() -> list[TokenSequence]:
    generator = np.random.default_rng(3)
    return [TokenSequence(generator.integers(1, VOCABULARY, length).tolist()) for length in (40, 3, 1, 17)]


@pytest.mark.parametrize("labels", [1, 3])
def test_heads_of_decoders(labels: int, backend: _C.Backend, tmp_path: Path) -> None:
    variant = Variant("Qwen3", {"head_dim": 16, "num_labels": labels, "pad_token_id": 0})
    config = variant.reference().config
    torch.manual_seed(1)
    model = transformers.Qwen3ForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight, std=0.2)
    model.save_pretrained(tmp_path)
    assert is_embedding_model(tmp_path)
    loaded = load_embedding_model(tmp_path, backend=backend)
    assert (loaded.task, loaded.dim) == ("score", labels)
    sequences = decoder_sequences()
    expected = np.stack([reference_logits(model, sequence) for sequence in sequences])
    assert largest_error(loaded.encode(sequences), sigmoid(expected) if labels == 1 else expected) <= 1e-4


@pytest.mark.parametrize("false", [NO, None], ids=["yes or no", "yes"])
@pytest.mark.parametrize("tied", [True, False])
def test_rerankers_that_answer(tied: bool, false: int | None, backend: _C.Backend, tmp_path: Path) -> None:
    """Qwen3-Reranker, as sentence-transformers saves it: the probability of yes."""
    model = Variant("Qwen3", {"head_dim": 16, "tie_word_embeddings": tied}).reference(gain=1.0)
    model.save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain"), transformer_task="text-generation"), LogitScore(YES, false)]
    sentence_transformers.CrossEncoder(modules=modules, device="cpu").save(str(tmp_path / "saved"))
    assert is_embedding_model(tmp_path / "saved")
    sequences = decoder_sequences()
    logits = np.stack([reference_logits(model, sequence)[-1] for sequence in sequences])
    expected = sigmoid(logits[:, YES] - (0 if false is None else logits[:, NO]))[:, None]
    loaded = load_embedding_model(tmp_path / "saved", backend=backend)
    assert (loaded.task, loaded.dim) == ("score", 1)
    assert largest_error(loaded.encode(sequences), expected) <= 1e-4
    packed = load_embedding_model(
        tmp_path / "saved", backend=backend, transform=Packer(Recipe(format="int8"), backend=backend)
    )
    assert np.abs(packed.encode(sequences) - expected).max() <= 0.05


def test_a_reranker_without_modules(backend: _C.Backend, tmp_path: Path) -> None:
    """It cannot be told from any other decoder: a task must be asked for."""
    model = Variant("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}).reference(gain=1.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        load_embedding_model(tmp_path, backend=backend, task="score")
    save_tokenizer(tmp_path)
    assert not is_embedding_model(tmp_path)
    sequences = decoder_sequences()
    logits = np.stack([reference_logits(model, sequence)[-1] for sequence in sequences])
    loaded = load_embedding_model(tmp_path, backend=backend, task="score")
    assert largest_error(loaded.encode(sequences), sigmoid(logits[:, YES] - logits[:, NO])[:, None]) <= 1e-4


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"true_token_id": 500}, "true_token_id must be from 0 to"),
        ({"false_token_id": 1}, "true_token_id is missing"),
        ({"true_token_id": 1, "module_input_name": "logits"}, "module_input_name"),
        ({"true_token_id": 1, "temperature": 2.0}, "temperature"),
    ],
)
def test_answers_that_are_refused(values: dict[str, Any], problem: str, backend: _C.Backend, tmp_path: Path) -> None:
    Variant("Qwen3", {"head_dim": 16}).reference().save_pretrained(tmp_path)
    types = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    modules = [
        {"path": path, "type": f"sentence_transformers.{name}"}
        for path, name in zip(("", "1_LogitScore"), types, strict=True)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_LogitScore").mkdir()
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=problem):
        load_embedding_model(tmp_path, backend=backend)
