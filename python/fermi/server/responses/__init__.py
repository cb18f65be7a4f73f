"""POST /v1/responses and what belongs to it: items, events, and the responses that are kept."""

from fermi.server.responses.kept import Responses

__all__ = ["Responses"]
