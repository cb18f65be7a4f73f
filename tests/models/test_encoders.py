"""Every encoder and variant against Transformers, on random checkpoints."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fermi import _C
from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models.embedding import ENCODERS, TokenSequence
from fermi.models.fields import Fields
from fermi.models.mpnet import distance_buckets
from fermi.quantization import Packer, Recipe
from models.comparison import cosine, largest_error
from models.tiny_encoders import (
    ENCODER_VARIANTS,
    EncoderVariant,
    hidden_states,
    load_encoder,
    reference_states,
    rope,
)

Reference = Callable[[str], transformers.PreTrainedModel]
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def encoder_reference() -> Reference:
    """The Transformers model of a variant, by its name."""
    models: dict[str, transformers.PreTrainedModel] = {}
    return lambda name: models.setdefault(name, ENCODER_VARIANTS[name].reference())


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, encoder_reference: Reference) -> Folder:
    """The folder of a variant's checkpoint in float32, by the variant's name."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
            encoder_reference(name).save_pretrained(folders[name])
        return folders[name]

    return get


@pytest.mark.parametrize("name", ENCODER_VARIANTS)
def test_states_in_f32(name: str, encoder_reference: Reference, encoder_folder: Folder, backend: _C.Backend) -> None:
    """Of a packed batch, from one token to as many as the model takes."""
    variant = ENCODER_VARIANTS[name]
    encoder = load_encoder(encoder_folder(name), backend)
    assert encoder.max_seq_length == variant.reach
    sequences = variant.sequences([1, 2, 7, 33, 64, variant.reach])
    for sequence, states in zip(sequences, hidden_states(encoder, sequences), strict=True):
        expected = reference_states(encoder_reference(name), sequence)
        assert largest_error(states, expected) <= 1e-4, len(sequence.token_ids)


@pytest.mark.parametrize("name", ENCODER_VARIANTS)
def test_a_sequence_alone_and_among_others(name: str, encoder_folder: Folder, backend: _C.Backend) -> None:
    encoder = load_encoder(encoder_folder(name), backend)
    sequences = ENCODER_VARIANTS[name].sequences([5, 1, 130, 16, 17, 15, 64, 3], seed=1)
    for sequence, states in zip(sequences, hidden_states(encoder, sequences), strict=True):
        assert largest_error(states, hidden_states(encoder, [sequence])[0]) <= 1e-5


@pytest.mark.parametrize("name", ENCODER_VARIANTS)
def test_some_rows(name: str, encoder_folder: Folder, backend: _C.Backend) -> None:
    encoder = load_encoder(encoder_folder(name), backend)
    sequences = ENCODER_VARIANTS[name].sequences([9, 30])
    rows = np.array([0, 8, 9, 38], dtype=np.int32)
    with _C.record(backend) as step:
        some = encoder(encoder.batch(sequences), _C.Tensor.from_numpy(rows))
    step.run()
    assert largest_error(some.float32(), np.concatenate(hidden_states(encoder, sequences))[rows]) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ENCODER_VARIANTS)
def test_states_in_half_precision(name: str, dtype: str, backend: _C.Backend, tmp_path: Path) -> None:
    """Against the same rounded weights, computed with in float32."""
    variant = ENCODER_VARIANTS[name]
    variant.reference(gain=1.0).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    rounded = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    sequences = variant.sequences([1, 20, 100])
    encoder = load_encoder(tmp_path, backend)
    for sequence, states in zip(sequences, hidden_states(encoder, sequences), strict=True):
        assert cosine(states, reference_states(rounded, sequence)) >= 0.9999


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_conversion_of_weights(dtype: str, encoder_folder: Folder, backend: _C.Backend) -> None:
    sequences = ENCODER_VARIANTS["bert"].sequences([40])
    plain, converted = (load_encoder(encoder_folder("bert"), backend, dtype=name) for name in ("auto", dtype))
    states = hidden_states(converted, sequences)[0]
    assert 0.999 <= cosine(states, hidden_states(plain, sequences)[0]) < 1 - 1e-9


@pytest.mark.parametrize(
    "name", ["bert", "distilbert relu", "mpnet", "modernbert", "modernbert odd sizes", "nomic-bert"]
)
def test_packed_weights(name: str, backend: _C.Backend, tmp_path: Path) -> None:
    variant = ENCODER_VARIANTS[name]
    model = variant.reference(gain=1.0)
    model.save_pretrained(tmp_path)
    packed: list[str] = []
    packer = Packer(Recipe(format="int8"), backend=backend)

    def transform(matrix: str, role: Any, weight: _C.Weight) -> _C.Weight:
        result = packer(matrix, role, weight)
        packed.extend([matrix] * (result.format == "int8"))
        return result

    encoder = load_encoder(tmp_path, backend, transform=transform)
    assert len(packed) >= 4
    sequences = variant.sequences([1, 20, 100])
    for sequence, states in zip(sequences, hidden_states(encoder, sequences), strict=True):
        assert cosine(states, reference_states(model, sequence)) >= 0.995


def any_encoder(draw: random.Random) -> EncoderVariant:
    family = draw.choice(["Bert", "Roberta", "XLMRoberta", "MPNet", "DistilBert", "ModernBert", "NomicBert"])
    rotary = family in ("ModernBert", "NomicBert")
    heads, head_dim = draw.choice([1, 2, 3, 5]), draw.choice([2, 8, 14, 32, 64] if rotary else [1, 3, 8, 20, 64])
    layers = draw.randint(1, 4)
    activation = draw.choice(["gelu", "relu", "gelu_new", "silu"])
    if family == "DistilBert":
        options: dict[str, Any] = {"dim": heads * head_dim, "n_heads": heads, "n_layers": layers}
        return EncoderVariant(family, {**options, "hidden_dim": draw.choice([5, 33, 64]), "activation": activation})
    options = {
        "vocab_size": draw.choice([19, 64, 1001]),
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": draw.choice([5, 33, 64, 150]),
        "max_position_embeddings": draw.choice([140, 400]),
    }
    if family == "ModernBert":
        kinds = ["full_attention", "sliding_attention"]
        return EncoderVariant(
            family,
            {
                **options,
                "hidden_activation": activation,
                "local_attention": draw.choice([2, 3, 9, 40, 1000]),
                "layer_types": [draw.choice(kinds) for _ in range(layers)],
                "norm_bias": draw.random() < 0.5,
                "attention_bias": draw.random() < 0.5,
                "mlp_bias": draw.random() < 0.5,
                "rope_parameters": {kind: rope("default", draw.choice([20.0, 1e4, 1e6])) for kind in kinds},
            },
        )
    options |= {"hidden_act": activation, "layer_norm_eps": draw.choice([1e-12, 1e-5, 1e-2])}
    if family != "MPNet":
        options["type_vocab_size"] = draw.choice([1, 2, 4])
    if family in ("Roberta", "XLMRoberta"):
        options["pad_token_id"] = draw.choice([0, 1, 9])
    return EncoderVariant(family, options)


@pytest.mark.parametrize("seed", range(24))
def test_configs_that_nobody_chose(seed: int, tmp_path: Path) -> None:
    """On every instruction set."""
    draw = random.Random(seed)
    variant = any_encoder(draw)
    model = variant.reference(seed=seed)
    model.save_pretrained(tmp_path)
    sequences = variant.sequences([draw.choice([1, 3, 16, 17, 31, 70, 130]) for _ in range(4)], seed)
    expected = [reference_states(model, sequence) for sequence in sequences]
    for architecture in _C.cpu_architectures():
        encoder = load_encoder(tmp_path, _C.open_backend("cpu", threads=2, architecture=architecture))
        for states, wanted in zip(hidden_states(encoder, sequences), expected, strict=True):
            assert largest_error(states, wanted) <= 1e-4, (architecture, variant)


def test_padding_tokens_of_a_text_count_no_position(
    encoder_reference: Reference, encoder_folder: Folder, backend: _C.Backend
) -> None:
    sequence = TokenSequence([1, 7, 1, 1, 8, 1])
    for name in ("xlm-roberta", "mpnet"):
        states = hidden_states(load_encoder(encoder_folder(name), backend), [sequence])[0]
        assert largest_error(states, reference_states(encoder_reference(name), sequence)) <= 1e-4


def test_distance_buckets() -> None:
    distances = np.arange(-200, 201)
    mpnet = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    expected = mpnet.relative_position_bucket(torch.from_numpy(distances), num_buckets=32)
    np.testing.assert_array_equal(distance_buckets(distances), expected.numpy())


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "ForMaskedLM"),
        ("bert", "ForPreTraining"),
        ("bert", "ForSequenceClassification"),
        ("roberta", "ForMaskedLM"),
        ("xlm-roberta", "ForSequenceClassification"),
        ("distilbert", "ForMaskedLM"),
        ("distilbert", "ForSequenceClassification"),
        ("mpnet", "ForMaskedLM"),
        ("modernbert", "ForMaskedLM"),
        ("modernbert", "ForSequenceClassification"),
        ("nomic-bert", "ForMaskedLM"),
        ("nomic-bert", "ForSequenceClassification"),
    ],
)
def test_checkpoints_with_a_head(name: str, task: str, backend: _C.Backend, tmp_path: Path) -> None:
    """Their tensors have a prefix, and those of the head are not needed."""
    variant = ENCODER_VARIANTS[name]
    model = variant.reference(task)
    model.save_pretrained(tmp_path)
    sequence = variant.sequences([20])[0]
    states = hidden_states(load_encoder(tmp_path, backend), [sequence])[0]
    assert largest_error(states, reference_states(model.base_model, sequence)) <= 1e-4


def change(folder: Path, rename: Callable[[str], str], more: dict[str, torch.Tensor]) -> None:
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors | more, folder / "model.safetensors")


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def bert_copy(encoder_folder: Folder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_folder("bert"), tmp_path / "copy"))


def test_names_of_tensorflow(bert_copy: Path, encoder_folder: Folder, backend: _C.Backend) -> None:
    def renamed(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    change(bert_copy, renamed, {"embeddings.position_ids": torch.arange(160)[None]})
    sequences = ENCODER_VARIANTS["bert"].sequences([20])
    (states,), (expected,) = (
        hidden_states(load_encoder(folder, backend), sequences) for folder in (bert_copy, encoder_folder("bert"))
    )
    np.testing.assert_array_equal(states, expected)


def test_tensors_that_nobody_knows(bert_copy: Path, backend: _C.Backend) -> None:
    change(bert_copy, lambda name: name.replace("layer.1.output.dense", "layer.1.exit"), {"adapter": torch.zeros(2)})
    with pytest.raises(CheckpointError) as caught:
        load_encoder(bert_copy, backend)
    message = str(caught.value)
    assert "missing: encoder.layer.1.output.dense.weight, encoder.layer.1.output.dense.bias" in message
    assert "adapter" in message
    assert "encoder.layer.1.exit.weight" in message


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert", "nomic-bert", "distilbert"])
def test_tensors_of_another_shape(name: str, encoder_folder: Folder, backend: _C.Backend, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_folder(name), tmp_path / "copy"))
    change(folder, str, {"x": torch.zeros(1)})
    sizes = ("hidden_dim", "intermediate_size")
    edit(folder, **{size: 40 for size in sizes if size in json.loads((folder / "config.json").read_text())})
    with pytest.raises(CheckpointError, match=r"unused: x; misfitting: .* is \[.*112"):
        load_encoder(folder, backend)


def read(model_type: str, **values: Any) -> Any:
    sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if model_type == "distilbert":
        sizes = {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4}
    fields = Fields({"model_type": model_type, **sizes, **values}, Path("config.json"))
    config = ENCODERS[model_type].read_config(fields)
    fields.refuse_rest()
    return config


@pytest.mark.parametrize(
    ("model_type", "values", "field"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"pruned_heads": {"1": [0]}}, "pruned_heads"),
        ("bert", {"hidden_act": "mish"}, "hidden_act"),
        ("bert", {"embedding_size": 32}, "embedding_size = 32"),
        ("bert", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("roberta", {"position_embedding_type": "relative_key_query"}, "position_embedding_type"),
        ("xlm-roberta", {"adapters": {"a": 1}}, "adapters"),
        ("distilbert", {"type_vocab_size": 2}, "type_vocab_size"),
        ("distilbert", {"hidden_size": 32}, "hidden_size = 32"),
        ("mpnet", {"type_vocab_size": 2}, "type_vocab_size"),
        ("modernbert", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "ntk"}}}, "full_attention.rope_type"),
        ("modernbert", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta"),
        ("nomic_bert", {"prenorm": True}, "prenorm"),
        ("nomic_bert", {"causal": True}, "causal"),
        ("nomic_bert", {"use_rms_norm": True}, "use_rms_norm"),
        ("nomic_bert", {"parallel_block": True}, "parallel_block"),
        ("nomic_bert", {"moe_every_n_layers": 2}, "moe_every_n_layers"),
        ("nomic_bert", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
        ("nomic_bert", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base"),
        ("nomic_bert", {"n_embd": 64, "rotary_emb_fraction": 0.0}, "rotary_emb_fraction"),
        ("nomic_bert", {"activation_function": "gelu"}, "activation_function"),
        ("nomic_bert", {"n_head": 8}, "n_head"),
        ("nomic_bert", {"head_dim": 24}, "head_dim"),
    ],
)
def test_unsupported(model_type: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: .*{field}"):
        read(model_type, **values)


@pytest.mark.parametrize(
    ("model_type", "values", "field"),
    [
        ("bert", {"vocab_size": None}, "vocab_size is missing"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads"),
        ("bert", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ("distilbert", {"n_heads": 3}, "num_attention_heads|n_heads"),
        ("roberta", {"pad_token_id": 600}, "pad_token_id"),
        ("mpnet", {"relative_attention_num_buckets": 8}, "relative_attention_num_buckets"),
        ("mpnet", {"max_position_embeddings": 2}, "max_position_embeddings"),
        ("modernbert", {"local_attention": 1}, "local_attention"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("nomic_bert", {"n_embd": 64, "rotary_emb_fraction": 2.0}, "partial_rotary_factor"),
    ],
)
def test_malformed(model_type: str, values: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: .*({field})") as caught:
        read(model_type, **values)
    assert not isinstance(caught.value, UnsupportedModelError)


#: As published, with its own set of fields.
NOMIC = """{
  "activation_function": "swiglu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0, "bos_token_id": null,
  "causal": false, "dense_seq_output": true, "embd_pdrop": 0.0, "eos_token_id": null, "fused_bias_fc": true,
  "fused_dropout_add_ln": true, "initializer_range": 0.02, "layer_norm_epsilon": 1e-12, "max_trained_positions": 160,
  "mlp_fc1_bias": false, "mlp_fc2_bias": false, "model_type": "nomic_bert", "n_embd": 64, "n_head": 4, "n_inner": 112,
  "n_layer": 3, "n_positions": 640, "pad_vocab_size_multiple": 1, "parallel_block": false,
  "parallel_block_tied_norm": false, "prenorm": false, "qkv_proj_bias": false, "reorder_and_upcast_attn": false,
  "resid_pdrop": 0.0, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
  "rotary_emb_scale_base": null, "rotary_scaling_factor": 2, "scale_attn_by_inverse_layer_idx": false,
  "scale_attn_weights": true, "summary_activation": null, "summary_first_dropout": 0.0,
  "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true, "torch_dtype": "float32",
  "transformers_version": "4.34.0", "type_vocab_size": 2, "use_cache": true, "use_flash_attn": true,
  "use_rms_norm": false, "use_xentropy": true, "vocab_size": 197}"""


def test_first_fields_of_nomic_bert(
    encoder_reference: Reference, encoder_folder: Folder, backend: _C.Backend, tmp_path: Path
) -> None:
    """They ask for the same as Transformers' own do, and so does a file with both."""
    name = "nomic-bert dynamic"
    folder = Path(shutil.copytree(encoder_folder(name), tmp_path / "copy"))
    own = json.loads((folder / "config.json").read_text())
    first = {**json.loads(NOMIC), "activation_function": "geglu"}
    sequences = ENCODER_VARIANTS[name].sequences([30, 160])
    for config in (first, {**first, **own}):
        (folder / "config.json").write_text(json.dumps(config))
        encoder = load_encoder(folder, backend)
        assert encoder.max_seq_length == 640
        for sequence, states in zip(sequences, hidden_states(encoder, sequences), strict=True):
            assert largest_error(states, reference_states(encoder_reference(name), sequence)) <= 1e-4
    (longer,) = ENCODER_VARIANTS[name].sequences([400])
    states = hidden_states(encoder, [longer])[0]
    assert largest_error(states, reference_states(encoder_reference(name), longer)) <= 1e-4


#: ModernBERT as published, before Transformers 5.
MODERNBERT = """{
  "architectures": ["ModernBertForMaskedLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "classifier_activation": "gelu", "classifier_bias": false, "classifier_dropout": 0.0, "classifier_pooling": "mean",
  "cls_token_id": 1, "decoder_bias": true, "deterministic_flash_attn": false, "embedding_dropout": 0.0,
  "eos_token_id": 2, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "gradient_checkpointing": false,
  "hidden_activation": "gelu", "hidden_size": 64, "initializer_cutoff_factor": 2.0, "initializer_range": 0.02,
  "intermediate_size": 112, "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 10000.0,
  "max_position_embeddings": 160, "mlp_bias": false, "mlp_dropout": 0.0, "model_type": "modernbert",
  "norm_bias": false, "norm_eps": 1e-05, "num_attention_heads": 4, "num_hidden_layers": 3, "pad_token_id": 0,
  "position_embedding_type": "absolute", "reference_compile": true, "sep_token_id": 2, "sparse_pred_ignore_index": -100,
  "sparse_prediction": false, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0", "vocab_size": 197}"""


def test_older_fields_of_modernbert(encoder_folder: Folder, backend: _C.Backend, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_folder("modernbert"), tmp_path / "copy"))
    sequences = ENCODER_VARIANTS["modernbert"].sequences([150])
    expected = hidden_states(load_encoder(folder, backend), sequences)
    (folder / "config.json").write_text(MODERNBERT)
    np.testing.assert_array_equal(hidden_states(load_encoder(folder, backend), sequences), expected)


@pytest.mark.parametrize(
    ("sequence", "problem"),
    [
        (TokenSequence([3] * 161), "161 tokens is longer than the model's 160"),
        (TokenSequence([3, 4], [0]), "1 type_ids for 2 tokens"),
        (TokenSequence([3, 4], [0, 2]), "type_ids reach 2; the model has 2 types"),
    ],
)
def test_sequences_that_the_model_cannot_take(
    sequence: TokenSequence, problem: str, encoder_folder: Folder, backend: _C.Backend
) -> None:
    with pytest.raises(ValueError, match=problem):
        load_encoder(encoder_folder("bert"), backend).batch([sequence])
