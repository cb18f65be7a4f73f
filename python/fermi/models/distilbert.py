"""DistilBERT (arXiv 1910.01108): BERT without token types, under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fermi.models.encoder import EncoderConfig, Names, PostNormEncoder
from fermi.models.fields import Fields

__all__ = ["DistilBert"]

#: Its fields, by BERT's names.
SPELLING: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_act": "activation",
    }
)

#: How it was trained, and what its table of positions was made of: the checkpoint holds the table.
UNUSED_FIELDS = frozenset({"dropout", "qa_dropout", "seq_classif_dropout", "tie_weights_", "sinusoidal_pos_embds"})


class DistilBert(PostNormEncoder[EncoderConfig]):
    """Learned absolute positions."""

    prefix = "distilbert"
    layers = "transformer.layer"
    names = Names(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        mlp_norm="output_layer_norm",
    )
    classifier = (("pre_classifier", "relu"), ("classifier", None))
    heads = (
        "embeddings.position_ids",
        "pre_classifier.weight",
        "pre_classifier.bias",
        "classifier.weight",
        "classifier.bias",
        "vocab_transform.weight",
        "vocab_transform.bias",
        "vocab_layer_norm.weight",
        "vocab_layer_norm.bias",
        "vocab_projector.weight",
        "vocab_projector.bias",
    )

    @classmethod
    def read_config(cls, config: Fields) -> EncoderConfig:
        config.ignore(UNUSED_FIELDS)
        config.expect("type_vocab_size", 0)
        config.expect("layer_norm_eps", 1e-12)  # which stands in Transformers' code
        return EncoderConfig(**EncoderConfig.common(config.spelled(SPELLING), type_vocab_size=0))
