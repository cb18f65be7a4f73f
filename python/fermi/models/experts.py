"""Mixtures of experts: a router sends each token to a few of many MLPs (arXiv 1701.06538, 2101.03961)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fermi import _C
from fermi.models.config import DecoderConfig
from fermi.models.fields import Fields
from fermi.models.layers import Linear, Norm
from fermi.models.weights import Weights

__all__ = ["Experts", "Mixture", "MixtureConfig", "Router", "SharedExpert"]

#: Weights of experts, one or two matrices each.
Matrices: TypeAlias = list[list[_C.Weight]]

#: How a router was trained.
TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(DecoderConfig):
    """Of a decoder some of whose MLPs are mixtures.

    Attributes:
        num_experts: of a mixture; ``num_experts_per_tok`` of them work on each token.
        moe_intermediate_size: of an expert.
        norm_topk_prob: whether the weights of a token's experts add up to one.
        sparse_layers: of each layer, whether its MLP is a mixture.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    sparse_layers: tuple[bool, ...]

    @staticmethod
    def mixture(fields: Fields, layers: int, *, experts: int, per_token: int, inner: int) -> dict[str, Any]:
        """What this class adds, as Qwen models write it; the arguments are what Transformers takes for absent fields.

        Raises CheckpointError naming a malformed field.
        """
        fields.ignore(TRAINING)
        name = "num_experts" if "num_experts" in fields else "num_local_experts"
        count = fields.integer(name, default=experts, minimum=0, maximum=2**16)
        step = fields.integer("decoder_sparse_step", default=1)
        dense = fields.raw("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
            raise fields.malformed("mlp_only_layers", "must be a list of numbers of layers")
        return {
            "num_experts": count,
            "num_experts_per_tok": read_per_token(fields, default=per_token, experts=count),
            "moe_intermediate_size": fields.integer("moe_intermediate_size", default=inner, maximum=2**24),
            "norm_topk_prob": fields.flag("norm_topk_prob", default=False),
            "sparse_layers": tuple(
                count > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(layers)
            ),
        }


def read_per_token(fields: Fields, *, default: int, experts: int) -> int:
    """num_experts_per_tok. Raises CheckpointError where there are not so many."""
    per_token = fields.integer("num_experts_per_tok", default=default)
    if per_token > experts > 0:
        raise fields.malformed("num_experts_per_tok", f"must be at most the {experts} experts, not {per_token}")
    return per_token


class Router:
    """Which experts work on a token: those with the largest softmax of its logits."""

    def __init__(self, weights: Weights, config: MixtureConfig) -> None:
        # Exact: an input rounded to bf16 would send tokens to other experts where two of them are nearly equal.
        self.matrix = weights.table("gate.weight", config.num_experts, config.hidden_size, exact=True)
        self.per_token = config.num_experts_per_tok
        self.normalize = config.norm_topk_prob

    def __call__(self, x: _C.Tensor) -> tuple[_C.Tensor, _C.Tensor]:
        """[tokens, hidden] -> experts, and what they weigh: [tokens, k] each."""
        return _C.route(_C.linear(x, self.matrix), self.per_token, normalize=self.normalize)


class Experts:
    """Gated MLPs of which each token meets its own (arXiv 2002.05202).

    The checkpoint holds each expert's matrices by their ``names``, of gate, up and down; or those of all experts in two
    tensors, [experts, gate and up, hidden] and [experts, hidden, inner].
    """

    def __init__(
        self,
        weights: Weights,
        config: MixtureConfig,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        gate, up, down = names
        hidden, inner = config.hidden_size, config.moe_intermediate_size

        def pull(stack: str, parts: Sequence[str], rows: int, columns: int) -> Matrices:
            """Of every expert."""
            every = [[f"{expert}.{part}.weight" for part in parts] for expert in range(config.num_experts)]
            if stack in weights:
                return weights.stacked(stack, every, rows, columns)
            return [[weights.matrix(name, rows, columns) for name in names] for names in every]

        self.gate_up = pull("gate_up_proj", (gate, up), inner, hidden)
        self.down = pull("down_proj", (down,), hidden, inner)
        self.activation = config.hidden_act

    def __call__(self, x: _C.Tensor, experts: _C.Tensor, route_weights: _C.Tensor, residual: _C.Tensor) -> None:
        """residual += Σᵢ route_weights[:, i] * mlp of experts[:, i] (x); [tokens, hidden]."""
        inner = _C.expert_linear(x, self.gate_up, experts, activation=self.activation)  # [tokens * k, inner]
        _C.expert_linear(inner, self.down, experts, route_weights=route_weights, residual=residual)


class SharedExpert:
    """An MLP that works on every token, weighed by a sigmoid of its own (arXiv 2401.06066)."""

    def __init__(self, weights: Weights, config: MixtureConfig, inner: int) -> None:
        hidden, mlp = config.hidden_size, weights.under("shared_expert")
        self.gate = weights.table("shared_expert_gate.weight", 1, hidden)
        self.gate_up = Linear(mlp, {"gate_proj": inner, "up_proj": inner}, hidden)
        self.down = Linear(mlp, {"down_proj": hidden}, inner)
        self.activation = config.hidden_act

    def __call__(self, x: _C.Tensor, residual: _C.Tensor) -> None:
        """residual += sigmoid(gate(x)) * mlp(x)"""
        # A mixture of one expert, whom every token meets.
        only, weight = _C.route(_C.linear(x, self.gate), 1, scoring="sigmoid", normalize=False)
        inner = self.gate_up(x, activation=self.activation)
        _C.expert_linear(inner, [self.down.weights], only, route_weights=weight, residual=residual)


class Mixture:
    """x += experts(norm(x)), and the shared expert's part if there is one."""

    def __init__(self, router: Router, experts: Experts, shared: SharedExpert | None = None) -> None:
        self.router = router
        self.experts = experts
        self.shared = shared

    def __call__(self, x: _C.Tensor, norm: Norm | None) -> None:
        normed = x if norm is None else norm(x)
        self.experts(normed, *self.router(normed), residual=x)
        if self.shared is not None:
            self.shared(normed, residual=x)
