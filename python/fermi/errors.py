"""The exceptions that fermi raises.

::

    FermiError
    ├── ConfigError (also ValueError)        a setting: unknown section or key, bad value, missing file
    ├── HubError                             a model's files cannot be had
    │   ├── ModelNotFoundError               no such repository, revision or folder
    │   ├── GatedModelError                  the repository asks for a token, or for its terms to be accepted
    │   └── OfflineError                     not in the cache, and the network may not be or cannot be reached
    ├── CheckpointError                      malformed, missing, unexpected or mis-shaped tensors or files
    │   └── UnsupportedModelError            a config.json field that fermi does not honour
    ├── RequestError (also ValueError)       one request is wrong; nothing else is touched
    │   ├── ContextLengthError               prompt and reply do not fit the model's context
    │   ├── ModelNotServedError              the request names a model that is not served
    │   └── ChatTemplateError                the conversation is refused by the model's chat template
    ├── QueueFullError                       too many requests wait; try again later
    ├── DeadlineError                        the request's time was over before its first token
    └── EngineError                          the engine failed; not the request's fault
        └── EngineDownError                  it takes no requests: it starts anew after a crash, or has ended
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ChatTemplateError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DeadlineError",
    "EngineDownError",
    "EngineError",
    "FermiError",
    "GatedModelError",
    "HubError",
    "ModelNotFoundError",
    "ModelNotServedError",
    "OfflineError",
    "QueueFullError",
    "RequestError",
    "UnsupportedModelError",
]


class FermiError(Exception):
    """The base of every error that fermi raises on purpose."""


class ConfigError(FermiError, ValueError):
    """A setting is unknown, malformed or out of range; the message names it and where it came from."""


class HubError(FermiError):
    """The files of a model cannot be had; the message says what to do."""


class ModelNotFoundError(HubError):
    """No folder, repository or revision of that name exists."""


class GatedModelError(HubError):
    """The repository is gated or private, and no accepted token was given."""


class OfflineError(HubError):
    """The files are not in the cache, and the network is switched off or cannot be reached."""


class CheckpointError(FermiError):
    """A checkpoint is malformed or does not fit its model; the message names the file."""


class UnsupportedModelError(CheckpointError):
    """The model's config.json asks for something that fermi does not implement; the message names the field."""


class RequestError(FermiError, ValueError):
    """One request cannot be served as it stands.

    Attributes:
        param: the request field at fault, as the client wrote it (``"messages.0.content"``), or None.
        code: the machine-readable code of the OpenAI error object, or None.
    """

    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else self.default_code


class ContextLengthError(RequestError):
    """The prompt, or the prompt and the reply asked for, do not fit the model's context.

    Attributes:
        tokens: of the prompt; ``limit``: of the context; 0 where that is not known.
    """

    default_code = "context_length_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, tokens: int = 0, limit: int = 0
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.tokens = tokens
        self.limit = limit


class ModelNotServedError(RequestError):
    """The request names a model that this process does not serve."""

    default_code = "model_not_found"


class ChatTemplateError(RequestError):
    """The model's chat template refuses the conversation, or cannot render it."""


class QueueFullError(FermiError):
    """As many requests wait as may; ``retry_after`` is the number of seconds after which to try again."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(FermiError):
    """The request's deadline passed before its first token."""


class EngineError(FermiError):
    """The engine failed while the request ran; the request itself may be fine."""


class EngineDownError(EngineError):
    """The engine takes no requests: it starts anew after a crash, has failed for good, or was stopped."""
