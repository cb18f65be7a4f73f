"""What a setting may hold besides numbers and words: an address, an amount of memory, a thinking mode."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer

Thinking = Literal["on", "off", "auto"]

_THINKING: dict[str, Thinking] = {"on": "on", "true": "on", "off": "off", "false": "off", "auto": "auto"}
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*|%)\s*", re.IGNORECASE)


class Address(NamedTuple):
    """Where a server listens; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: object) -> Address:
    """Read ``host:port``, ``[v6]:port``, ``:port`` (every interface) or an `Address`.

    Raises:
        ValueError: it is none of these, or the port is above 65535.
    """
    if isinstance(value, Address):
        return value
    host, colon, port = value.strip().rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in bare and bare == host):
        raise ValueError(f"{value!r} is not an address: write host:port, for example 127.0.0.1:8000 or [::1]:8000")
    return Address(bare or "0.0.0.0", int(port))


def parse_thinking(value: object) -> Thinking:
    """Read on, off, auto, true or false in any case, or a boolean.

    Raises:
        ValueError: it is something else.
    """
    mode = _THINKING.get(str(value).strip().lower()) if isinstance(value, (str, bool)) else None
    if mode is None:
        raise ValueError(f"{value!r} is not one of on, off, auto")
    return mode


def parse_memory(value: object) -> int | float:
    """Read an amount of memory: an int is bytes, a float is a share of what is free.

    Accepts ``2147483648``, ``"2GiB"``, ``"2G"`` (the same), ``"2GB"`` (10^9), ``"25%"`` and ``0.25``.

    Raises:
        ValueError: it is none of these, a share outside (0, 1], or a number too small to be meant as bytes.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not an amount of memory: write 2GiB, 25% or 0.25")
    match = _AMOUNT.fullmatch(str(value))
    if match is None or (match[2] != "%" and match[2].lower() not in _UNITS):
        raise ValueError(f"{value!r} is not an amount of memory: write 2GiB, 25% or 0.25")
    number, unit = match[1], match[2].lower()
    if unit == "%" or (unit == "" and "." in number):
        share = float(number) / (100 if unit == "%" else 1)
        if not 0 < share <= 1:
            raise ValueError(f"{value!r} is not a share of the free memory: it must be above 0 and at most 100%")
        return share
    amount = int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]
    if amount <= 100:
        raise ValueError(f"{value!r} is {amount} bytes: write 2GiB for bytes, 25% or 0.25 for a share")
    return amount


def split_words(text: str) -> tuple[str, ...]:
    """What stands between commas and line ends."""
    return tuple(part for piece in re.split(r"[,\r\n]", text) if (part := piece.strip()))


def parse_list(value: object) -> object:
    """Split a string at commas and line ends; anything else is left to the type."""
    return split_words(value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """Refuse a boolean where a number is meant: Python would take True for 1."""
    if isinstance(value, bool):
        raise ValueError("is a boolean, not a number")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Limit = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Words = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
AddressValue = Annotated[Address, BeforeValidator(parse_address), PlainSerializer(str, return_type=str)]
ThinkingValue = Annotated[Thinking, BeforeValidator(parse_thinking)]
STORES = ("off", ":memory:")  # words where the name of a file may stand
StoreValue = Path | Literal["off", ":memory:"]
MemoryValue = Annotated[int | float, BeforeValidator(parse_memory)]
