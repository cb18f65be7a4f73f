"""expert_linear: each row by the weights of its expert, spread over experts and combined again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, indices, normal, operand, rounded_to_bf16, same_bits
from ops.packed_operands import FORMS, Form, packed

Doubles = npt.NDArray[np.float64]
Format: TypeAlias = "_C.DTypeName | Form"

FORMATS: tuple[Format, ...] = (*FLOATS, *FORMS)


@dataclass(frozen=True)
class Shape:
    """``inner``: what an expert brings forth of ``hidden`` columns, and takes back."""

    tokens: int
    experts: int
    k: int
    hidden: int = 40
    inner: int = 33


SHAPES = [
    Shape(1, 8, 2, 64, 48),
    Shape(1, 1, 1, 5, 3),
    Shape(3, 60, 4, 37, 51),  # more experts than tokens
    Shape(6, 5, 5, 100, 31),  # all experts
    Shape(9, 1, 1, 130, 20),  # one expert
    Shape(29, 4, 1, 1, 1),
    Shape(70, 6, 3, 66, 29),
    Shape(300, 2, 2, 130, 7),
    Shape(0, 4, 2),
]


@dataclass(frozen=True)
class Experts:
    """Weights of experts, and the exact numbers that they hold."""

    weights: list[list[_C.Weight]]
    values: list[list[Doubles]]


def draw_experts(
    generator: np.random.Generator, form: Format, count: int, rows: int, columns: int, matrices: int
) -> Experts:
    def draw() -> tuple[_C.Weight, Doubles]:
        if isinstance(form, Form):
            drawn = packed(generator, rows, columns, form)
            return drawn.weight, drawn.values
        dense = normal(generator, rows, columns, dtype=form)
        return dense.weight, dense.values

    drawn = [[draw() for _ in range(matrices)] for _ in range(count)]
    return Experts([[w for w, _ in each] for each in drawn], [[v for _, v in each] for each in drawn])


def draw_routes(generator: np.random.Generator, tokens: int, experts: int, k: int) -> npt.NDArray[np.int32]:
    """[tokens, k], of each token k different ones; the first few much more often than the others."""
    liking = generator.random((tokens, experts)) * np.where(np.arange(experts) < 2, 3, 1)
    return np.argsort(-liking, axis=1)[:, :k].astype(np.int32)


def as_met(x: Doubles, form: Format) -> Doubles:
    """The numbers that an input in f32 becomes where it meets packed weights."""
    return reference.rounded_to_int8(x, form.group) if isinstance(form, Form) else x


def assert_close(out: _C.Tensor, expected: Doubles) -> None:
    """Sums in single precision, in whatever order."""
    bound = 3e-6 * max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(out.float32(), expected, rtol=2e-5, atol=bound)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spreads(backend: _C.Backend, generator: np.random.Generator, form: Format, shape: Shape) -> None:
    x = normal(generator, shape.tokens, shape.hidden)
    routes = draw_routes(generator, shape.tokens, shape.experts, shape.k)
    met = np.repeat(as_met(x.values, form), shape.k, axis=0)
    for matrices, activation in ((1, None), (1, "relu"), (2, "silu")):
        experts = draw_experts(generator, form, shape.experts, shape.inner, shape.hidden, matrices)
        with _C.record(backend, batch_invariant=True) as step:
            out = _C.expert_linear(x.tensor, experts.weights, indices(routes), activation=activation)  # type: ignore[arg-type]
        step.run()
        assert out.shape == (shape.tokens * shape.k, shape.inner)
        assert_close(out, reference.expert_linear(met, experts.values, routes, activation))


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_combines(backend: _C.Backend, generator: np.random.Generator, form: Format, shape: Shape) -> None:
    x = normal(generator, shape.tokens * shape.k, shape.inner)
    routes = draw_routes(generator, shape.tokens, shape.experts, shape.k)
    weights = operand(generator.random((shape.tokens, shape.k)))
    for matrices, activation in ((1, None), (2, "gelu")):
        experts = draw_experts(generator, form, shape.experts, shape.hidden, shape.inner, matrices)
        residual = normal(generator, shape.tokens, shape.hidden)
        before = residual.values.copy()
        with _C.record(backend, batch_invariant=True) as step:
            out = _C.expert_linear(
                x.tensor,
                experts.weights,
                indices(routes),
                activation=activation,  # type: ignore[arg-type]
                route_weights=weights.tensor,
                residual=residual.tensor,
            )
        step.run()
        assert out.address == residual.tensor.address
        rows = reference.expert_linear(as_met(x.values, form), experts.values, routes, activation)
        assert_close(out, before + reference.combine(rows, weights.values))


@pytest.mark.parametrize("form", ["f32", "bf16", FORMS[1]], ids=str)
def test_many_outputs_of_many_rows_are_added_up_in_parts(
    backend: _C.Backend, generator: np.random.Generator, form: Format
) -> None:
    tokens, k, inner, hidden = 1500, 4, 18, 700
    x = normal(generator, tokens * k, inner)
    routes = draw_routes(generator, tokens, 9, k)
    weights = operand(generator.random((tokens, k)))
    experts = draw_experts(generator, form, 9, hidden, inner, 1)
    residual = normal(generator, tokens, hidden)
    before = residual.values.copy()
    with _C.record(backend, batch_invariant=True) as step:
        _C.expert_linear(
            x.tensor, experts.weights, indices(routes), route_weights=weights.tensor, residual=residual.tensor
        )
    step.run()
    rows = reference.expert_linear(as_met(x.values, form), experts.values, routes)
    assert_close(residual.tensor, before + reference.combine(rows, weights.values))


@pytest.mark.parametrize("tokens", [4, 5, 90])
def test_many_tokens_may_be_rounded_to_bf16(backend: _C.Backend, generator: np.random.Generator, tokens: int) -> None:
    """As in linear: with bf16 weights, where the machine multiplies pairs of them."""
    x = normal(generator, tokens, 120)
    routes = draw_routes(generator, tokens, 7, 2)
    experts = draw_experts(generator, "bf16", 7, 33, 120, 1)
    out = _C.expert_linear(x.tensor, experts.weights, indices(routes)).float32()
    exact, rounded = (
        reference.expert_linear(np.repeat(met, 2, axis=0), experts.values, routes)
        for met in (x.values, rounded_to_bf16(x.values))
    )
    near = [np.allclose(out, expected, rtol=0, atol=1e-4) for expected in (exact, rounded)]
    assert any(near) if tokens > 4 else near[0]


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_row_is_the_same_among_any_others(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, form: Format
) -> None:
    tokens, k, hidden, inner = 60, 3, 300, 70
    x = normal(generator, tokens, hidden).tensor
    routes = draw_routes(generator, tokens, 7, k)
    weights = operand(generator.random((tokens, k))).tensor
    gate_up = draw_experts(generator, form, 7, inner, hidden, 2).weights
    down = draw_experts(generator, form, 7, hidden, inner, 1).weights

    def run(threads: int, chosen: list[int]) -> tuple[_C.Tensor, _C.Tensor]:
        picked = indices(chosen)
        experts = indices(routes[chosen])
        with _C.record(opened(threads), batch_invariant=True) as step:
            own = _C.gather_rows(x, picked)
            spread = _C.expert_linear(own, gate_up, experts, activation="silu")
            scales = _C.gather_rows(weights, picked)
            out = _C.expert_linear(spread, down, experts, route_weights=scales, residual=own)
        step.run()
        return spread, out

    spread, together = run(3, list(range(tokens)))
    for threads, chosen in [(1, list(range(tokens))), (2, [4]), (3, [59, 0]), (2, list(range(50, 7, -1))), (1, [8, 9])]:
        some, out = run(threads, chosen)
        for place, token in enumerate(chosen):
            assert same_bits(out.narrow(0, place, 1), together.narrow(0, token, 1)), (threads, chosen)
            assert same_bits(some.narrow(0, place * k, k), spread.narrow(0, token * k, k)), (threads, chosen)


@pytest.mark.parametrize("form", ["f16", "bf16", FORMS[3]], ids=str)
def test_a_layer_recorded_is_the_same_as_op_by_op(
    backend: _C.Backend, generator: np.random.Generator, form: Format
) -> None:
    """A router, its experts and their sum, run twice: what waits between the ops is left as it was found."""
    tokens, experts, k = 17, 12, 3
    x = normal(generator, tokens, 64).tensor
    router = normal(generator, experts, 64).weight
    gate_up = draw_experts(generator, form, experts, 40, 64, 2).weights
    down = draw_experts(generator, form, experts, 64, 40, 1).weights

    def layer(residual: _C.Tensor) -> None:
        chosen, weights = _C.route(_C.linear(x, router), k)
        spread = _C.expert_linear(x, gate_up, chosen, activation="gelu_tanh")
        _C.expert_linear(spread, down, chosen, route_weights=weights, residual=residual)

    eager, recorded = (_C.Tensor.zeros((tokens, 64)) for _ in range(2))
    layer(eager)
    with _C.record(backend) as step:
        layer(recorded)
    for _ in range(2):
        recorded.numpy()[:] = 0
        step.run()
        assert same_bits(recorded, eager)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_instruction_sets_agree_bit_for_bit(generator: np.random.Generator, form: Form) -> None:
    x = normal(generator, 9, 300).tensor
    routes = indices(draw_routes(generator, 9, 4, 2))
    experts = draw_experts(generator, form, 4, 45, 300, 1).weights
    outs = []
    # Standard C++ does not fuse a product and a sum.
    for architecture in set(_C.cpu_architectures()) - {"portable"}:
        with _C.open_backend("cpu", threads=2, architecture=architecture):
            outs.append(_C.expert_linear(x, experts, routes))
    assert all(same_bits(out, outs[0]) for out in outs)


def test_only_the_weights_of_experts_in_use_are_read(backend: _C.Backend, generator: np.random.Generator) -> None:
    x = normal(generator, 40, 33)
    experts = draw_experts(generator, "f32", 6, 21, 33, 1)
    routes = np.where(np.arange(40)[:, None] % 3 == 0, [[1, 4]], [[4, 0]]).astype(np.int32)
    for unused in (2, 3, 5):
        experts.weights[unused][0].data.numpy()[:] = np.nan
    out = _C.expert_linear(x.tensor, experts.weights, indices(routes))
    assert_close(out, reference.expert_linear(np.repeat(x.values, 2, axis=0), experts.values, routes))


def test_takes_strided_rows_and_narrowed_weights(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, fused = normal(generator, 9, 100), normal(generator, 3 * 40, 60)
    pairs = [
        [_C.Weight(fused.tensor.narrow(0, 40 * e + start, 20)) for start in (0, 20)] for e in range(3)
    ]  # [gate | up] of each expert, side by side
    values = [[fused.values[40 * e + start :][:20] for start in (0, 20)] for e in range(3)]
    routes = draw_routes(generator, 9, 3, 2)
    with _C.record(backend, batch_invariant=True) as step:
        out = _C.expert_linear(x.tensor.narrow(1, 17, 60), pairs, indices(routes), activation="silu")
    step.run()
    assert_close(out, reference.expert_linear(np.repeat(x.values[:, 17:77], 2, axis=0), values, routes, "silu"))


def test_refuses_what_does_not_fit(generator: np.random.Generator) -> None:
    x, routes = normal(generator, 3, 8).tensor, indices([[0, 1], [1, 0], [0, 1]])
    one, other, wide = (normal(generator, *shape).weight for shape in ((5, 8), (5, 8), (5, 9)))
    residual, weights = normal(generator, 3, 5).tensor, normal(generator, 3, 2).tensor
    for message, arguments in {
        "there is no expert": {"weights": []},
        "every expert must have one matrix, or every one two": {"weights": [[one], [one, other]]},
        r"weights .* differ": {"weights": [[one], [wide]]},
        r"weight .* has 9 columns, x \[3, 8\] has 8": {"weights": [[wide], [wide]]},
        "two matrices of an expert need an activation": {"weights": [[one, other], [one, other]]},
        "route_weights and residual must come together": {"weights": [[one], [other]], "route_weights": weights},
        r"x \[3, 8\] must have 6 rows": {
            "weights": [[one], [other]],
            "route_weights": weights,
            "residual": residual,
        },
    }.items():
        with pytest.raises(ValueError, match=f"expert_linear: {message}"):
            _C.expert_linear(x, experts=routes, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("expert", [-1, 2])
def test_refuses_an_expert_that_does_not_exist(
    backend: _C.Backend, generator: np.random.Generator, expert: int
) -> None:
    x, experts = normal(generator, 3, 8).tensor, draw_experts(generator, "f32", 2, 4, 8, 1).weights
    with pytest.raises(ValueError, match=r"expert_linear: experts\[3\] is"):
        _C.expert_linear(x, experts, indices([[0, 1], [1, expert], [0, 1]]))


def test_refuses_experts_that_were_chosen_among_more(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, experts = normal(generator, 3, 8).tensor, draw_experts(generator, "f32", 2, 4, 8, 1).weights
    logits = normal(generator, 3, 5).tensor
    with (
        pytest.raises(ValueError, match="expert_linear: experts are chosen among 5, there are 2"),
        _C.record(backend),
    ):
        _C.expert_linear(x, experts, _C.route(logits, 2)[0])


def test_no_tokens_choose_among_as_many_experts_as_there_are(
    backend: _C.Backend, generator: np.random.Generator
) -> None:
    x, experts = normal(generator, 0, 8).tensor, draw_experts(generator, "f32", 2, 4, 8, 1).weights
    with _C.record(backend) as step:  # both choices lie at the same place: nowhere
        many = _C.expert_linear(x, experts, _C.route(normal(generator, 0, 2).tensor, 1)[0])
        one = _C.expert_linear(x, experts[:1], _C.route(normal(generator, 0, 1).tensor, 1)[0])
    step.run()
    assert many.shape == one.shape == (0, 4)
