"""Tiny encoders that Transformers makes, one for each thing that config.json can ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from fermi import _C
from fermi.models.checkpoint import Checkpoint
from fermi.models.embedding import ENCODERS, TokenSequence
from fermi.models.encoder import Encoder, ModernNames
from fermi.models.fields import Fields
from fermi.models.weights import Transform, Weights

VOCABULARY = 197

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}

DISTILBERT_SIZES = {
    "vocab_size": VOCABULARY,
    "dim": 64,
    "hidden_dim": 112,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 160,
}

#: ModernBERT's own lie beyond a small vocabulary.
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@dataclass(frozen=True)
class EncoderVariant:
    """A config of a family."""

    family: str  # Transformers' prefix of the class names
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, **more: Any) -> transformers.PreTrainedConfig:
        sizes = DISTILBERT_SIZES if self.family == "DistilBert" else SIZES
        special = SPECIAL if self.family == "ModernBert" else {}
        config = getattr(transformers, f"{self.family}Config")(**{**sizes, **special, **self.options, **more})
        config._attn_implementation = "eager"
        return config

    def reference(
        self, task: str = "Model", seed: int = 0, gain: float = 1.5, **more: Any
    ) -> transformers.PreTrainedModel:
        """The model with random weights, in float32. A matrix stretches its input by about ``gain``."""
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.family}{task}")(self.config(**more)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 1 if "relative" in name else gain * parameter.shape[1] ** -0.5)
                else:
                    parameter.normal_(0 if name.endswith("bias") else 1, 0.2)
        model.tie_weights()
        return model

    @property
    def types(self) -> int:
        """How many types tokens may have."""
        config = self.config()
        return getattr(config, "type_vocab_size", 0) if self.family != "MPNet" else 0

    @property
    def reach(self) -> int:
        """Tokens of the longest sequence."""
        positions: int = self.config().max_position_embeddings
        behind = {"Roberta": self.config().pad_token_id, "XLMRoberta": self.config().pad_token_id, "MPNet": 1}
        return positions - behind[self.family] - 1 if self.family in behind else positions

    def sequences(self, lengths: Sequence[int], seed: int = 0) -> list[TokenSequence]:
        """Random tokens, the second half of each sequence of another type where there are types."""
        generator = np.random.default_rng(seed)
        made = []
        for length in lengths:
            ids = generator.integers(0, self.config().vocab_size, length).tolist()
            types = [int(place >= length // 2) for place in range(length)] if self.types > 1 else None
            made.append(TokenSequence(ids, types))
        return made


def rope(rope_type: str, theta: float, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **parameters}


ENCODER_VARIANTS = {
    "bert": EncoderVariant("Bert"),
    "bert one head": EncoderVariant("Bert", {"num_attention_heads": 1, "hidden_act": "gelu_new"}),
    "bert odd sizes": EncoderVariant(
        "Bert",
        {"hidden_size": 60, "num_attention_heads": 12, "intermediate_size": 37, "vocab_size": 31, "type_vocab_size": 3},
    ),
    "bert one layer": EncoderVariant("Bert", {"num_hidden_layers": 1, "hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert one type": EncoderVariant("Bert", {"type_vocab_size": 1, "hidden_act": "silu"}),
    "roberta": EncoderVariant("Roberta"),
    "roberta padding": EncoderVariant("Roberta", {"pad_token_id": 5, "type_vocab_size": 1}),
    "xlm-roberta": EncoderVariant("XLMRoberta", {"type_vocab_size": 1, "vocab_size": 251}),
    "distilbert": EncoderVariant("DistilBert"),
    "distilbert relu": EncoderVariant(
        "DistilBert", {"activation": "relu", "n_heads": 2, "dim": 26, "sinusoidal_pos_embds": True}
    ),
    "mpnet": EncoderVariant("MPNet"),
    "mpnet one head": EncoderVariant("MPNet", {"num_attention_heads": 1, "relative_attention_num_buckets": 40}),
    "modernbert": EncoderVariant("ModernBert"),
    "modernbert window": EncoderVariant(
        "ModernBert",
        {
            "local_attention": 6,
            "num_hidden_layers": 4,
            "global_attn_every_n_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 200,
        },
    ),
    "modernbert biases": EncoderVariant(
        "ModernBert",
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "local_attention": 33, "norm_eps": 1e-3},
    ),
    "modernbert layer types": EncoderVariant(
        "ModernBert",
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "local_attention": 2,
            "hidden_activation": "silu",
            "rope_parameters": {
                "full_attention": rope("linear", 500.0, factor=3.0),
                "sliding_attention": rope("default", 50.0),
            },
        },
    ),
    "modernbert odd sizes": EncoderVariant(
        "ModernBert", {"hidden_size": 36, "num_attention_heads": 6, "intermediate_size": 21, "vocab_size": 33}
    ),
    "nomic-bert": EncoderVariant("NomicBert"),
    "nomic-bert odd sizes": EncoderVariant(
        "NomicBert",
        {
            "hidden_size": 36,
            "num_attention_heads": 3,
            "intermediate_size": 31,
            "type_vocab_size": 1,
            "rope_parameters": rope("default", 77.0),
        },
    ),
    "nomic-bert dynamic": EncoderVariant(
        "NomicBert", {"hidden_act": "gelu", "rope_parameters": rope("dynamic", 1000.0, factor=2.0)}
    ),
}


def reference_states(model: transformers.PreTrainedModel, sequence: TokenSequence) -> npt.NDArray[np.float32]:
    """Transformers' last hidden states of one sequence alone."""
    inputs = {"input_ids": torch.tensor([sequence.token_ids])}
    if sequence.type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([sequence.type_ids])
    with torch.no_grad():
        states: npt.NDArray[np.float32] = model(**inputs).last_hidden_state[0].float().numpy()
    return states


def load_encoder(
    folder: Path, backend: _C.Backend, *, dtype: str = "auto", transform: Transform | None = None
) -> Encoder[Any]:
    """The encoder in a folder, without what its checkpoint puts upon it."""
    fields = Fields.from_file(folder / "config.json")
    architecture = fields.choice("model_type", ENCODERS)
    config = architecture.read_config(fields)
    fields.refuse_rest()
    weights = Weights(ModernNames(Checkpoint(folder)), backend=backend, dtype=dtype, transform=transform)
    encoder = architecture(config, architecture.body(weights))
    weights.check()
    return encoder


def hidden_states(encoder: Encoder[Any], sequences: Sequence[TokenSequence]) -> list[npt.NDArray[np.float32]]:
    """The last hidden states of each sequence of a packed batch."""
    batch = encoder.batch(sequences)
    with _C.record(encoder.backend) as step:
        states = encoder(batch)
    step.run()
    return np.split(states.float32(), np.cumsum([len(sequence.token_ids) for sequence in sequences])[:-1])
