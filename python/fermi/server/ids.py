"""Names for requests and replies."""

from __future__ import annotations

import random

__all__ = ["new_id"]


def new_id() -> str:
    """32 hexadecimal digits that no other has, but that could be guessed: for what is no secret.

    `uuid.uuid4` asks the kernel, and while it does the engine's thread takes the interpreter: a tenth of a request.
    """
    return f"{random.getrandbits(128):032x}"
