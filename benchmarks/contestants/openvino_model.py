"""A checkpoint as an OpenVINO model, built op by op: a decoder with a state, as Optimum exports it, weights compressed.

int8 is symmetric with a scale for each row, int4 symmetric in groups of 128 with the head and the embedding in int8:
what NNCF's weight compression makes by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from contestants.contestant import NotSupportedError
from contestants.rotary import inverse_frequencies
from contestants.tensors import Checkpoint

__all__ = ["write_openvino"]

GROUP = 128
Node = Any


def write_openvino(folder: Path, target: Path, format: str) -> None:
    """Writes ``openvino_model.xml`` and ``.bin`` of the checkpoint in ``folder``."""
    builder = Builder(Checkpoint(folder), format)
    ov.save_model(builder.model(), target / "openvino_model.xml", compress_to_fp16=False)
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())


def quantized(values: npt.NDArray[np.float32], bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16]]:
    """Symmetric along the last axis: whole numbers and their scales, the last axis 1."""
    top = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(values).max(-1, keepdims=True) / top, 1e-7).astype(np.float16)
    return np.clip(np.rint(values / scale.astype(np.float32)), -top, top).astype(np.int8), scale


class Builder:
    """Ops of one model. Activations are [batch, tokens, …]."""

    def __init__(self, checkpoint: Checkpoint, format: str) -> None:
        self.tensors, self.format = checkpoint, format
        config = checkpoint.config
        if config["model_type"] not in ("llama", "mistral", "qwen2", "qwen3"):
            raise NotSupportedError(f"no OpenVINO model is built for model_type {config['model_type']}")
        self.config = config
        self.heads, self.dim = config["num_attention_heads"], checkpoint.head_dim
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.sinks: list[Node] = []
        self.variables: list[Variable] = []

    def model(self) -> ov.Model:
        """The whole model."""
        self.input_ids, self.attention_mask = parameter("input_ids"), parameter("attention_mask")
        self.position_ids, self.beam_idx = parameter("position_ids"), parameter("beam_idx", [-1], np.int32)
        parameters = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        self.batch = ops.gather(ops.shape_of(self.input_ids), constant([0]), constant(0))
        self._rotary_and_mask()
        table = self.weight("model.embed_tokens.weight", head=True)
        x = ops.gather(table, ops.convert(self.input_ids, "i32"), constant(0, np.int32))
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(x, layer)
        x = self.norm(x, "model.norm.weight")
        tied = self.config.get("tie_word_embeddings") or "lm_head.weight" not in self.tensors
        logits = ops.matmul(x, table if tied else self.weight("lm_head.weight", head=True), False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        result = ops.result(logits, "logits")
        return ov.Model([result], self.sinks, parameters, self.variables, "model")

    def _rotary_and_mask(self) -> None:
        frequencies = ops.constant(inverse_frequencies(self.tensors).reshape(1, -1, 1))
        positions = ops.convert(ops.unsqueeze(self.position_ids, constant(1)), "f32")
        angles = ops.transpose(ops.matmul(frequencies, positions, False, False), constant([0, 2, 1]))
        angles = ops.unsqueeze(ops.concat([angles, angles], -1), constant(1))  # [batch, 1, tokens, dim]
        self.cos, self.sin = ops.cos(angles), ops.sin(angles)
        length = ops.gather(ops.shape_of(self.attention_mask), constant(1), constant(0))
        columns = ops.range(constant(0), length, constant(1), "i64")
        seen = ops.less_equal(columns, ops.unsqueeze(ops.unsqueeze(self.position_ids, constant(1)), constant(3)))
        floor = ops.constant(np.float32(-65504))
        self.mask = ops.select(seen, ops.constant(np.float32(0)), floor)  # [batch, 1, tokens, context]

    def layer(self, x: Node, index: int) -> Node:
        """Attention and the gated feed-forward network, each added to what came in."""
        prefix = f"model.layers.{index}"
        x = ops.add(x, self.attention(self.norm(x, f"{prefix}.input_layernorm.weight"), index))
        y = self.norm(x, f"{prefix}.post_attention_layernorm.weight")
        gated = ops.multiply(
            ops.swish(self.linear(y, f"{prefix}.mlp.gate_proj")), self.linear(y, f"{prefix}.mlp.up_proj")
        )
        return ops.add(x, self.linear(gated, f"{prefix}.mlp.down_proj"))

    def attention(self, x: Node, index: int) -> Node:
        """Causal attention of grouped queries over the state's keys and values."""
        prefix = f"model.layers.{index}.self_attn"
        q = self.rotated(self.split(x, f"{prefix}.q_proj", self.heads, f"{prefix}.q_norm.weight"))
        k = self.rotated(self.split(x, f"{prefix}.k_proj", self.kv_heads, f"{prefix}.k_norm.weight"))
        v = self.split(x, f"{prefix}.v_proj", self.kv_heads, "")
        k, v = self.repeated(self.cached(k, f"{index}.key")), self.repeated(self.cached(v, f"{index}.value"))
        y = ops.scaled_dot_product_attention(q, k, v, self.mask, ops.constant(np.float32(self.dim**-0.5)), causal=False)
        y = ops.reshape(ops.transpose(y, constant([0, 2, 1, 3])), constant([0, 0, self.heads * self.dim]), True)
        return self.linear(y, f"{prefix}.o_proj")

    def split(self, x: Node, name: str, heads: int, norm: str) -> Node:
        """A projection as [batch, heads, tokens, dim], each head normalized where the model has a weight for that."""
        y = ops.reshape(self.linear(x, name), constant([0, 0, heads, self.dim]), True)
        if norm in self.tensors:
            y = self.norm(y, norm)
        return ops.transpose(y, constant([0, 2, 1, 3]))

    def rotated(self, x: Node) -> Node:
        """The rotary embedding, halves against each other."""
        half, axis = self.dim // 2, constant([3])
        first = ops.slice(x, constant([0]), constant([half]), constant([1]), axis)
        second = ops.slice(x, constant([half]), constant([2**31 - 1]), constant([1]), axis)
        turned = ops.concat([ops.multiply(second, ops.constant(np.float32(-1))), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def cached(self, new: Node, name: str) -> Node:
        """What the state holds and ``new`` behind it: [batch, kv_heads, context, dim]."""
        information = VariableInfo()
        information.data_shape = ov.PartialShape([-1, self.kv_heads, -1, self.dim])
        information.data_type = ov.Type.f32
        information.variable_id = f"past_key_values.{name}present.{name}"
        variable = Variable(information)
        shape = ops.concat([self.batch, constant([self.kv_heads]), constant([0]), constant([self.dim])], 0)
        old = ops.read_value(ops.broadcast(ops.constant(np.float32(0)), shape), variable)
        joined = ops.concat([ops.gather(old, self.beam_idx, constant(0)), new], 2)
        self.sinks.append(ops.assign(joined, variable))
        self.variables.append(variable)
        return joined

    def repeated(self, x: Node) -> Node:
        """Keys or values, once for each query head."""
        times = self.heads // self.kv_heads
        if times == 1:
            return x
        wide = ops.unsqueeze(x, constant(2))
        shape = ops.concat([self.batch, constant([self.kv_heads, times]), constant([1]), constant([self.dim])], 0)
        wide = ops.broadcast(wide, shape, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(wide, constant([0, self.heads, -1, self.dim]), True)

    def norm(self, x: Node, name: str) -> Node:
        """x / sqrt(mean(x²) + ε) × weight."""
        square = ops.reduce_mean(ops.power(x, ops.constant(np.float32(2))), constant([-1]), True)
        root = ops.sqrt(ops.add(square, ops.constant(np.float32(self.config["rms_norm_eps"]))))
        normalized = ops.multiply(x, ops.divide(ops.constant(np.float32(1)), root))
        return ops.multiply(normalized, ops.constant(self.tensors.f32(name)))

    def linear(self, x: Node, name: str) -> Node:
        """x · weightᵀ + bias."""
        y = ops.matmul(x, self.weight(f"{name}.weight"), False, True)
        return ops.add(y, ops.constant(self.tensors.f32(f"{name}.bias"))) if f"{name}.bias" in self.tensors else y

    def weight(self, name: str, head: bool = False) -> Node:
        """A matrix of the format, and what makes f32 of it again."""
        if self.format == "bf16":
            bits = ov.Tensor(
                np.ascontiguousarray(self.tensors.bf16(name)).view(np.uint16),
                ov.Shape(self.tensors.shape(name)),
                ov.Type.bf16,
            )
            return ops.convert(ops.constant(bits), "f32")
        values = self.tensors.f32(name)
        rows, columns = values.shape
        if self.format == "int4" and not head and columns % GROUP == 0:
            whole, scale = quantized(values.reshape(rows, -1, GROUP), 4)
            nibbles = whole.reshape(-1, 2).view(np.uint8) & 15
            packed = ov.Tensor(
                nibbles[:, 0] | nibbles[:, 1] << 4, ov.Shape([rows, columns // GROUP, GROUP]), ov.Type.i4
            )
            grouped = ops.multiply(ops.convert(ops.constant(packed), "f16"), ops.constant(scale))
            return ops.convert(ops.reshape(grouped, constant([rows, columns]), False), "f32")
        whole, scale = quantized(values, 8)
        return ops.convert(ops.multiply(ops.convert(ops.constant(whole), "f16"), ops.constant(scale)), "f32")


def parameter(name: str, shape: Sequence[int] = (-1, -1), dtype: Any = np.int64) -> Node:
    """An input of the model."""
    node = ops.parameter(list(shape), dtype)
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def constant(values: object, dtype: Any = np.int64) -> Node:
    """Shapes and indices."""
    return ops.constant(np.array(values, dtype))
