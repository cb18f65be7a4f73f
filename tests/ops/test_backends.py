"""Opening devices by name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from fermi import _C


def test_the_cpu_is_always_there() -> None:
    assert _C.devices()[0] == "cpu"
    assert _C.cpu_architectures()[-1] == "portable"
    backend = _C.open_backend()
    assert (backend.device, backend.architecture) == ("cpu", _C.cpu_architectures()[0])
    assert backend.threads == _C.physical_cores() >= 1
    free, total = backend.memory()
    assert 0 < free <= total
    backend.synchronize()


def test_each_instruction_set_can_be_forced(architecture: str) -> None:
    backend = _C.open_backend("cpu", threads=3, architecture=architecture)
    assert (backend.architecture, backend.threads) == (architecture, 3)
    assert repr(backend) == f"Backend(cpu ({architecture}, 3 threads))"


def test_what_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(_C.BackendError, match=r"sse9 is not available; usable here: .*portable"):
        _C.open_backend("cpu", architecture="sse9")
    with pytest.raises(_C.BackendError, match=r"cuda:7: there is no such backend|cuda:7"):
        _C.open_backend("cuda:7")
    with pytest.raises(ValueError, match='"tpu" is none of cpu, cuda'):
        _C.open_backend("tpu")
    with pytest.raises(ValueError, match="threads"):
        _C.open_backend("cpu", threads=-1)
    with pytest.raises(_C.BackendError, match="threads"):
        _C.open_backend("cpu", threads=1_000_000)


def test_backends_nest_per_thread() -> None:
    outer, inner = _C.open_backend(threads=1), _C.open_backend(threads=2)
    with outer as entered:
        assert entered is outer
        with inner:
            with pytest.raises(ValueError, match="innermost"):
                outer.__exit__(None, None, None)
            failures: list[BaseException] = []

            def leave() -> None:
                try:
                    inner.__exit__(None, None, None)
                except ValueError as error:
                    failures.append(error)

            thread = threading.Thread(target=leave)
            thread.start()
            thread.join()
            assert len(failures) == 1


def test_an_idle_pool_uses_no_processor() -> None:
    backend = _C.open_backend(threads=4)
    with _C.record(backend) as step:
        _C.rms_norm(_C.Tensor.zeros([4, 8]), _C.Tensor.zeros([8]), 1e-6)
    step.run()
    least = min(processor_seconds_of_a_pause() for _ in range(5))  # other tests' threads may still be ending
    assert least < 0.02


def processor_seconds_of_a_pause() -> float:
    before = time.process_time()
    threading.Event().wait(0.1)
    return time.process_time() - before


def test_the_interpreter_ends_while_a_daemon_thread_computes() -> None:
    program = """
import threading
import numpy as np
from fermi import _C

backend = _C.open_backend(threads=3)
x = _C.Tensor.from_numpy(np.ones((64, 256), np.float32))
weight = _C.Weight(_C.Tensor.from_numpy(np.ones((256, 256), np.float32)))
with _C.record(backend) as step:
    h = _C.linear(x, weight)
def work():
    while True:
        step.run()
threading.Thread(target=work, daemon=True).start()
step.run()
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ}, timeout=120, check=False)
    assert done.returncode == 0
