"""GET /metrics for Prometheus, and /v1/metrics: what the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import psutil
from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from fermi.server.metrics import Metrics

router = APIRouter(tags=["operations"])

#: NVML's nvmlTemperatureSensors_t: of the chip.
TEMPERATURE_GPU = 0


@router.get("/metrics")
async def prometheus(request: Request) -> Response:
    """Counts and measures in the text format of Prometheus or, where it is asked for, of OpenMetrics."""
    metrics: Metrics = request.app.state.metrics
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(metrics.registry), media_type=content_type)


@router.get("/v1/metrics")
async def machine(request: Request) -> dict[str, Any]:
    """What the machine's processors, memory and GPU do; the use of the processors is since the last such request."""
    memory = psutil.virtual_memory()
    return {
        "cpu": {"utilization_percent": psutil.cpu_percent(None), "core_count": psutil.cpu_count() or 0},
        "memory": {
            "used_mb": _megabytes(memory.used),
            "total_mb": _megabytes(memory.total),
            "available_mb": _megabytes(memory.available),
        },
        "gpu": _gpu(),
        "timestamp": int(time.time()),
    }


def _gpu() -> dict[str, Any] | None:
    """The first GPU; None where there is none, or no nvidia-ml-py."""
    handle = _first_gpu()
    if handle is None:
        return None
    import pynvml

    def read(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except pynvml.NVMLError:  # this GPU does not tell, as one that is divided
            return None

    return {
        "device_id": 0,
        "utilization_percent": read(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "memory_used_mb": read(lambda: _megabytes(pynvml.nvmlDeviceGetMemoryInfo(handle).used)),
        "memory_total_mb": read(lambda: _megabytes(pynvml.nvmlDeviceGetMemoryInfo(handle).total)),
        "temperature_celsius": read(lambda: pynvml.nvmlDeviceGetTemperature(handle, TEMPERATURE_GPU)),
    }


@cache
def _first_gpu() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # no package, no driver or no device
        return None


def _megabytes(count: int) -> float:
    return round(count / 2**20, 1)
