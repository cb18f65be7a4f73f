"""Command-line flags made from the settings, so that none is missing and their help is never stale."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from fermi.config import SettingInfo, Settings, known_settings, load_settings

_TITLES = {
    "model": "model",
    "engine": "engine",
    "cache": "memory and disk",
    "generation": "generation, where a request does not say",
    "openai": "server",
    "cli": "conversation",
    "grpc": "gRPC server",
    "log": "log",
}


def add_setting_flags(parser: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """A flag for each setting of these sections, and --config."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="Configuration file, TOML or JSON. By default $FERMI_CONFIG, else ./fermi.toml if it is there.",
    )
    groups = {section: parser.add_argument_group(_TITLES[section]) for section in sections}
    for info in known_settings():
        if info.section in groups:
            _add(groups[info.section], info)
    if "openai" in groups:
        groups["openai"].add_argument(
            "--host", dest="openai.host", metavar="HOST", help="The host part of --addr. [HOST]"
        )
        groups["openai"].add_argument(
            "--port", dest="openai.port", metavar="PORT", help="The port part of --addr. [PORT]"
        )


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings, from what was parsed, the environment and the file. ConfigError names what is wrong."""
    given = {name: value for name, value in vars(arguments).items() if "." in name}
    models = given.pop("model.id", None)
    if isinstance(models, list):
        given["model.id"] = models[0]
        given["model.also"] = (*models[1:], *(given.get("model.also") or ())) or None
    return load_settings(given, config=arguments.config)


def _add(group: argparse._ArgumentGroup, info: SettingInfo) -> None:
    options: dict[str, Any] = {"dest": info.name, "default": None, "help": _help(info)}
    if info.name == "model.id":
        group.add_argument(*info.flags, action="append", metavar="MODEL", **options)
    elif bool in _members(info.kind):
        yes, _, no = info.flags[0].partition("/")
        group.add_argument(yes, no or f"--no-{yes.removeprefix('--')}", action=_OnOff, nargs=0, **options)
    elif tuple in _members(info.kind):
        group.add_argument(*info.flags, action="append", metavar=_metavar(info), **options)
    else:
        group.add_argument(*info.flags, metavar=_metavar(info), **options)


class _OnOff(argparse.Action):
    """A flag and its contrary: the first is on, the second off."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def _help(info: SettingInfo) -> str:
    default = "" if info.default in (None, ()) else f" Default: {_shown(info.default)}."
    if info.section == "model" and info.key == "id":
        default += " Several times to serve several."
    names = " ".join(info.env or info.nested_env[:1])
    return f"{info.meaning}{default} [{names}]".replace("%", "%%")


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _metavar(info: SettingInfo) -> str:
    words = [word for word in _literals(info.kind) if isinstance(word, str)]
    if words:
        return "|".join(words)
    name = info.flags[0].removeprefix("--").rpartition("-")[2]
    return name.upper()


def _members(kind: Any) -> set[Any]:
    """The types that a union, an Annotated or an Optional is made of."""
    members = {typing.get_origin(kind) or kind}
    for part in typing.get_args(kind):
        members |= _members(part) if not isinstance(part, str) else set()
    return members


def _literals(kind: Any) -> Iterable[object]:
    if typing.get_origin(kind) is Literal:
        yield from typing.get_args(kind)
        return
    for part in typing.get_args(kind):
        yield from _literals(part)
