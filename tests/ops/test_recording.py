"""Recordings seen from Python: they run what was described, free the interpreter meanwhile, refuse wrong indices."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest

from fermi import _C
from ops.operands import indices


@pytest.fixture
def cpu() -> _C.Backend:
    return _C.open_backend("cpu", threads=2)


def normal(*shape: int, seed: int = 0) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def perceptron(x: _C.Tensor, up: _C.Weight, down: _C.Weight) -> _C.Tensor:
    return _C.linear(_C.linear(x, up, activation="silu"), down)


@pytest.fixture
def weights() -> tuple[_C.Weight, _C.Weight]:
    return _C.Weight(normal(32, 16, seed=1)), _C.Weight(normal(16, 32, seed=2))


@pytest.mark.parametrize(
    ("tokens", "inner"), [(5, 32), (1, 1500), (300, 1500)], ids=["on one thread", "by its bytes", "by its operations"]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_recording_equals_eager(tokens: int, inner: int, threads: int) -> None:
    """What costs little runs on the calling thread alone, what moves or does more on all."""
    cpu = _C.open_backend("cpu", threads=threads)
    width = 16 if inner == 32 else 512
    weights = [_C.Weight(normal(inner, width, seed=1)), _C.Weight(normal(width, inner, seed=2))]
    x = normal(tokens, width)
    with _C.record(cpu) as step:
        y = perceptron(perceptron(x, *weights), *weights)
    assert (sum(cost.bytes for cost in step.costs) > 5 << 20) == (inner > 32)
    assert (sum(cost.operations for cost in step.costs) > 12e6) == (tokens == 300)
    step.compile()
    for seed in range(3):
        x.numpy()[:] = normal(tokens, width, seed=seed).numpy()
        step.run()
        with cpu:
            np.testing.assert_array_equal(y.numpy(), perceptron(perceptron(x, *weights), *weights).numpy())


def test_it_prints_and_counts(cpu: _C.Backend, weights: tuple[_C.Weight, _C.Weight]) -> None:
    with _C.record(cpu, batch_invariant=True) as step:
        perceptron(normal(5, 16), *weights)
    assert len(step) == 2
    assert str(step).splitlines() == [
        "f32[5, 32] = linear(x f32[5, 16], weight f32[32, 16], silu, batch_invariant)",
        "f32[5, 16] = linear(x f32[5, 32], weight f32[16, 32], batch_invariant)",
    ]
    assert repr(step) == f"Recording(2 ops, {step.workspace_bytes} bytes)"
    first = step.costs[0]
    assert (first.name, first.text) == ("linear", str(step).splitlines()[0])
    assert (first.bytes, first.operations) == (
        4 * (5 * 16 + 32 * 16 + 5 * 32),
        2 * 5 * 32 * 16 + 5 * 5 * 32,  # the activation counts five for each output
    )


def test_workspace_is_reused(cpu: _C.Backend) -> None:
    square = _C.Weight(normal(16, 16))
    h = normal(4, 16)
    with _C.record(cpu) as step:
        for _ in range(50):
            h = _C.linear(h, square)
    assert step.workspace_bytes == 2 * h.nbytes


def test_tensors_have_no_memory_before_it_is_closed(cpu: _C.Backend) -> None:
    with _C.record(cpu) as step:
        y = _C.rms_norm(normal(2, 8), normal(8), 1e-6)
        for read in (y.numpy, y.float32, lambda: np.from_dlpack(y)):
            with pytest.raises(ValueError, match="not closed"):
                read()
        with pytest.raises(BufferError):
            memoryview(y)
        with pytest.raises(ValueError, match="not described to its end"):
            step.run()
    step.run()
    assert y.numpy().shape == (2, 8)


def test_an_exception_ends_it(cpu: _C.Backend) -> None:
    step = _C.record(cpu)

    def describe() -> None:
        nonlocal y
        with step:
            y = _C.rms_norm(normal(2, 8), normal(8), 1e-6)
            raise KeyError

    y = normal(1)
    with pytest.raises(KeyError):
        describe()
    with pytest.raises(ValueError, match="an error ended its description"):
        step.run()
    with pytest.raises(ValueError, match="not closed"):
        y.numpy()
    assert _C.rms_norm(normal(2, 8), normal(8), 1e-6).numpy().shape == (2, 8), "eager again"


def test_recordings_do_not_nest(cpu: _C.Backend) -> None:
    with _C.record(cpu) as step, pytest.raises(ValueError, match="another one is open"), _C.record(cpu):
        pass
    with pytest.raises(ValueError, match="described before"), step:
        pass
    with pytest.raises(ValueError, match="not open on this thread"):
        step.__exit__(None, None, None)


def test_a_recording_belongs_to_its_thread(cpu: _C.Backend) -> None:
    elsewhere: list[_C.Tensor] = []
    with _C.record(cpu) as step:
        thread = threading.Thread(target=lambda: elsewhere.append(_C.rms_norm(normal(2, 8), normal(8), 1e-6)))
        thread.start()
        thread.join()
    assert len(step) == 0
    assert elsewhere[0].numpy().shape == (2, 8)


def test_dropping_an_open_recording_is_harmless(cpu: _C.Backend) -> None:
    def forget() -> None:
        _C.record(cpu).__enter__()
        with pytest.raises(ValueError, match="another one is open"):
            _C.record(cpu).__enter__()

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()
    assert _C.rms_norm(normal(2, 8), normal(8), 1e-6).numpy().shape == (2, 8)


def test_running_frees_the_interpreter(cpu: _C.Backend) -> None:
    weight = _C.Weight(normal(512, 512))
    h = normal(64, 512)
    with _C.record(cpu) as step:
        for _ in range(8):
            h = _C.linear(h, weight)
    step.compile()
    runs = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal runs
        while not stop.is_set():
            step.run()
            runs += 1

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    while runs < 20:  # this thread runs on only if the others let go of the interpreter
        stop.wait(0.001)
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("value", [4, -1, 2**31 - 1, -(2**31)])
def test_wrong_indices_are_refused_at_every_run(cpu: _C.Backend, value: int) -> None:
    ids = indices([0, 1, 3])
    table = _C.Weight(normal(4, 8))
    with _C.record(cpu) as step:
        y = _C.embed(ids, table)
    step.run()
    before = y.numpy().copy()
    ids.numpy()[1] = value
    with pytest.raises(ValueError, match=rf"embed: token_ids\[1\] is {value}"):
        step.run()
    with pytest.raises(ValueError, match=rf"embed: token_ids\[1\] is {value}"):
        _C.embed(ids, table)
    np.testing.assert_array_equal(y.numpy(), before)
    ids.numpy()[1] = 1
    step.run()


def test_ops_refuse_what_is_not_a_tensor() -> None:
    with pytest.raises(TypeError):
        _C.rms_norm(None, normal(8), 1e-6)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _C.linear(normal(2, 8), normal(4, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='"swish" is none of silu'):
        _C.linear(normal(2, 8), _C.Weight(normal(4, 8)), activation="swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='rule "yarn" is none of'):
        _C.rope_angles(indices([0]), indices([1]), normal(1, 4), rule="yarn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm: weight has 64 elements, it must have 128"):
        _C.rms_norm(normal(2, 128), normal(64), 1e-6)


def test_no_instance_is_without_contents() -> None:
    for kind in (_C.Tensor, _C.Weight, _C.Backend, _C.OpCost, _C.Recording, _C.Safetensors):
        with pytest.raises(TypeError):
            kind.__new__(kind)
        with pytest.raises(TypeError):
            kind()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        copy.copy(normal(2))
