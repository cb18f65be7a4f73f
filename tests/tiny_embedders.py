"""Tiny embedding models and cross-encoders with tokenizers, as sentence-transformers and Transformers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentence_transformers
import tokenizers
import torch
import transformers
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from models.tiny_encoders import ENCODER_VARIANTS
from text.test_sentences import BACKENDS

#: By the name of a tokenizer in tests/text/test_sentences.py: the family of the encoder, and its special tokens.
FAMILIES = {"bert": "bert", "xlm_roberta": "xlm-roberta", "roberta": "roberta"}
SPECIAL = {
    "bert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "xlm_roberta": {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"},
    "roberta": {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"},
}

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Une phrase à propos du café.",
    "x",
    "unbelievable embedding transformer words " * 20,
    "Ein Satz über Ärger, Öl und Übermut.",
    "numbers such as 1, 23 and 4567",
]


def save_tokenizer(name: str, folder: Path, limit: int) -> None:
    types = ["input_ids", "token_type_ids"] if name == "bert" else ["input_ids"]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[name],
        model_max_length=limit,
        model_input_names=[*types, "attention_mask"],
        **SPECIAL[name],
    )
    tokenizer.save_pretrained(folder)


def save_encoder(name: str, folder: Path, task: str = "Model", *, limit: int = 64, **options: Any) -> None:
    """An encoder with random weights and a tokenizer."""
    variant = ENCODER_VARIANTS[FAMILIES[name]]
    vocabulary = BACKENDS[name].get_vocab_size()
    variant.reference(task, vocab_size=vocabulary, **options).save_pretrained(folder)
    save_tokenizer(name, folder, limit)


def save_embedder(
    name: str, folder: Path, *, normalized: bool = True, limit: int = 64, **options: Any
) -> sentence_transformers.SentenceTransformer:
    """An embedding model in ``folder``; its reference."""
    save_encoder(name, folder / "encoder", limit=limit)
    modules: list[torch.nn.Module] = [Transformer(str(folder / "encoder")), Pooling(64, "mean")]
    model = sentence_transformers.SentenceTransformer(
        modules=[*modules, *([Normalize()] if normalized else [])], device="cpu", **options
    )
    model.save(str(folder / "model"))
    return model


def save_cross_encoder(
    name: str, folder: Path, *, labels: int = 1, limit: int = 64
) -> sentence_transformers.CrossEncoder:
    """A cross-encoder in ``folder``; its reference."""
    save_encoder(name, folder, "ForSequenceClassification", limit=limit, num_labels=labels)
    return sentence_transformers.CrossEncoder(str(folder), device="cpu")


#: Of a reranker that answers yes or no.
PAIR_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'query' %}<Query>: {{ message.content }}
    {%- elif message.role == 'document' %} <Document>: {{ message.content }}{% endif %}
{%- endfor %}
 answer:"""


def save_decoder(folder: Path) -> None:
    """A decoder with random weights, a tokenizer with yes and no, and nothing that says that it embeds or scores."""
    torch.manual_seed(0)
    specification = json.loads(BACKENDS["roberta"].to_str())
    vocabulary = specification["model"]["vocab"]
    vocabulary |= {"yes": len(vocabulary), "no": len(vocabulary) + 1}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(specification)),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL["roberta"],
    )
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def save_answering_reranker(folder: Path) -> sentence_transformers.CrossEncoder:
    """A decoder that sentence-transformers reranks by, in ``folder / "model"``; its reference."""
    save_decoder(folder / "decoder")
    (folder / "decoder" / "chat_template.jinja").write_text(PAIR_TEMPLATE)
    vocabulary = json.loads((folder / "decoder" / "tokenizer.json").read_text())["model"]["vocab"]
    decoder = Transformer(str(folder / "decoder"), transformer_task="text-generation")
    answers = LogitScore(vocabulary["yes"], vocabulary["no"])
    model = sentence_transformers.CrossEncoder(modules=[decoder, answers], device="cpu")
    model.save(str(folder / "model"))
    return model
