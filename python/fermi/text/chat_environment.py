"""The Jinja environment in which chat templates run: sandboxed, with what Transformers offers them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

__all__ = ["chat_environment"]

_LONGEST_REPEAT = 1_000_000  # characters or elements that one multiplication may make
_LARGEST_POWER = 4096  # bits that one power may have


def chat_environment(now: Callable[[], datetime]) -> ChatEnvironment:
    """An environment whose templates render as in Transformers; ``now`` is the clock behind ``strftime_now``."""
    environment = ChatEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class ChatEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which furthermore no product and no power can exhaust memory or time."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``, or SecurityError where the result would be enormous."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if abs(left).bit_length() * right > _LARGEST_POWER:
                raise jinja2.exceptions.SecurityError("a power in the template is too large")
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                repeats = isinstance(repeated, (str, list, tuple)) and isinstance(times, int)
                if repeats and len(repeated) * times > _LONGEST_REPEAT:
                    raise jinja2.exceptions.SecurityError("a repetition in the template is too long")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: what the model wrote, marked for training. Here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  so declared by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """``dict`` for templates: the two ways to make one, without the type behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` for templates, without underscored attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=…)` must work, as in Jinja's own
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot store the underscored attribute {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter would escape HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)
