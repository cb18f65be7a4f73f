"""Reads the settings: flag over environment over configuration file over default, and remembers which it was."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from fermi.config.settings import SECTIONS, Origin, SettingInfo, Settings, known_settings
from fermi.config.values import STORES, StoreValue, parse_address
from fermi.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Value(NamedTuple):
    """A raw value and where it came from."""

    raw: Any
    origin: Origin


Layer = dict[str, Value]  # "section.key" -> Value; the server's host and port are "openai.host" and "openai.port"


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Settings:
    """Read every setting once.

    Args:
        flags: ``section.key`` (and ``openai.host``, ``openai.port``) to the value given; None means not given.
        config: the configuration file; else the one that FERMI_CONFIG names, else ``fermi.toml`` if it is there.
        environ: the environment; the process's own by default.
        folder: where ``fermi.toml`` is looked for and relative names begin; the working folder by default.

    Raises:
        ConfigError: a named file is missing or malformed, a section or key is unknown, a value is bad. Names it.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    infos = {info.name: info for info in known_settings()}
    layers = [
        _file_layer(_config_file(config, environ, folder), infos),
        _text_files(_environment_layer(environ, infos), folder, infos),
        _text_files(_flag_layer(flags or {}, infos), folder, infos),
    ]
    return _build(_merge(layers))


def _config_file(config: str | Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    named, by = (config, "--config") if config else (environ.get("FERMI_CONFIG"), "FERMI_CONFIG")
    if not named:
        default = folder / "fermi.toml"
        return default if default.is_file() else None
    path = folder / Path(named).expanduser()
    if not path.is_file():
        raise ConfigError(f"{by}: the configuration file {named} does not exist")
    return path


def _file_layer(path: Path | None, infos: Mapping[str, SettingInfo]) -> Layer:
    """The settings of a TOML or JSON file."""
    if path is None:
        return {}
    try:
        text = path.read_text("utf-8-sig")
        document = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a table of sections, not {type(document).__name__}")
    layer: Layer = {}
    for section, table in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section [{section}]{_suggest(section, SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: [{section}] must be a table, not {table!r}")
        keys = {key: info for info in infos.values() if info.section == section for key in info.keys}
        for key, raw in table.items():
            if key not in keys:
                raise ConfigError(f"{path}: unknown key {section}.{key}{_suggest(key, keys)}")
            if keys[key].name in layer:
                raise ConfigError(f"{path}: {section} has both {' and '.join(keys[key].keys)}: they are the same")
            layer[keys[key].name] = Value(raw, Origin("file", str(path)))
    model = layer.get("model.id")
    if model is not None and isinstance(model.raw, str) and (path.parent / model.raw).is_dir():
        layer["model.id"] = model._replace(raw=str((path.parent / model.raw).resolve()))
    for name, value in layer.items():  # relative names begin where the file is
        named = infos[name].kind in (Path, Path | None, StoreValue | None) and isinstance(value.raw, str)
        if named and value.raw not in STORES:
            layer[name] = value._replace(raw=path.parent / Path(value.raw).expanduser())
    return _text_files(layer, path.parent, infos)


def _environment_layer(environ: Mapping[str, str], infos: Mapping[str, SettingInfo]) -> Layer:
    """The settings of the environment; an empty variable counts as unset."""
    given = {name: value for name, value in environ.items() if value != ""}
    layer: Layer = {}
    for info in infos.values():
        for name in (*info.nested_env, *info.env):
            if name in given:
                layer[info.name] = Value(given[name], Origin("environment", name))
                break
    if "FERMI_MODEL_DIR" in given:
        if not Path(given["FERMI_MODEL_DIR"]).expanduser().is_dir():
            raise ConfigError(f"environment FERMI_MODEL_DIR: {given['FERMI_MODEL_DIR']!r} is not a folder")
        layer["model.id"] = Value(given["FERMI_MODEL_DIR"], Origin("environment", "FERMI_MODEL_DIR"))
    if "openai.addr" not in layer:
        for part in ("host", "port"):
            if part.upper() in given:
                layer[f"openai.{part}"] = Value(given[part.upper()], Origin("environment", part.upper()))
    _refuse_unknown_nested(given, infos)
    return layer


def _refuse_unknown_nested(given: Iterable[str], infos: Mapping[str, SettingInfo]) -> None:
    known = {name for info in infos.values() for name in info.nested_env}
    for name in sorted(given):
        if name.startswith("FERMI_") and "__" in name and name not in known:
            section = name.removeprefix("FERMI_").partition("__")[0].lower()
            what = "key" if section in SECTIONS else f"section {section}"
            raise ConfigError(f"environment {name}: unknown {what}{_suggest(name, known)}")


def _flag_layer(flags: Mapping[str, Any], infos: Mapping[str, SettingInfo]) -> Layer:
    layer: Layer = {}
    for name, raw in flags.items():
        if raw is None or raw == ():
            continue
        if name not in infos and name not in ("openai.host", "openai.port"):
            raise ConfigError(f"unknown setting {name}{_suggest(name, infos)}")
        flag = infos[name].flags[0] if name in infos else f"--{name.partition('.')[2]}"
        layer[name] = Value(raw, Origin("flag", flag))
    return layer


def _text_files(layer: Layer, folder: Path, infos: Mapping[str, SettingInfo]) -> Layer:
    """Read what a layer names by ``<key>_file``, unless the same layer has the text itself."""
    read = dict(layer)
    for name, value in layer.items():
        target = name.removesuffix("_file")
        if target == name or target not in infos:
            continue
        if target in layer:  # the text itself wins
            del read[name]
            continue
        path = folder / Path(str(value.raw)).expanduser()
        try:
            text = path.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{value.origin}: {name}: {path} cannot be read: {error}") from error
        read[name] = value._replace(raw=path)
        read[target] = Value(text, value.origin)
    return read


def _merge(layers: Iterable[Layer]) -> Layer:
    """Later layers win; a host or a port replaces that part of the address below it, a model drops the revision."""
    merged: Layer = {}
    for layer in layers:
        if "model.id" in layer:
            merged.pop("model.revision", None)
        for name in layer:  # a text replaces the file that the text below it came from
            merged.pop(f"{name}_file", None)
        parts = {name: value for name, value in layer.items() if name in ("openai.host", "openai.port")}
        merged.update({name: value for name, value in layer.items() if name not in parts})
        for name, value in parts.items():
            below = merged.get("openai.addr")
            default = SECTIONS["openai"].model_fields["addr"].default
            try:
                address = parse_address(below.raw) if below else default
                host = str(value.raw) if name == "openai.host" else address.host
                port = str(value.raw) if name == "openai.port" else str(address.port)
                merged["openai.addr"] = Value(parse_address(f"[{host}]:{port}"), value.origin)
            except ValueError as error:
                raise ConfigError(f"{value.origin}: {error}") from error
    return merged


def _build(layer: Layer) -> Settings:
    tables: dict[str, dict[str, Any]] = {}
    for name, value in layer.items():
        section, _, key = name.partition(".")
        tables.setdefault(section, {})[key] = value.raw
    try:
        settings = Settings.model_validate(tables)
    except ValidationError as invalid:
        raise ConfigError("; ".join(_complaints(invalid, layer))) from invalid
    settings._origins = {name: value.origin for name, value in layer.items()}
    return settings


def _complaints(invalid: ValidationError, layer: Layer) -> Iterable[str]:
    """Origin, settings and reason of each thing wrong: a variable of several sections is wrong once."""
    names: dict[tuple[Origin | None, str], list[str]] = {}
    secret = {info.name for info in known_settings() if info.secret}
    for error in invalid.errors():
        name = ".".join(str(part) for part in error["loc"][:2])
        reason = error["msg"].removeprefix("Value error, ")
        if name in layer and name not in secret and error["type"] != "value_error":
            reason += f", got {layer[name].raw!r}"
        names.setdefault((layer[name].origin if name in layer else None, reason), []).append(name)
    for (origin, reason), settings in names.items():
        yield f"{'' if origin is None else f'{origin}: '}{', '.join(settings)}: {reason}"


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(sorted(known))})"
