"""From what the command line names to a model that can be loaded; nothing here touches its weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fermi.config import Settings
from fermi.server.registry import Entry, Facts
from fermi.server.served import Served


def model_names(settings: Settings) -> list[str]:
    """What to serve, each as it was given: ``[alias=]PATH_OR_ID``."""
    return [settings.model.id, *settings.model.also]


def split_alias(given: str) -> tuple[str | None, str]:
    """Tell ``alias=source`` apart; a folder that has a = in its name is a source."""
    alias, equals, source = given.partition("=")
    if equals and alias and source and _folder(given) is None:
        return alias, source
    return None, given


def names_of(given: str) -> tuple[str, frozenset[str]]:
    """What clients call a model: its name, and others that they may use."""
    alias, source = split_alias(given)
    folder = _folder(source)
    folder_name = source if folder is None else folder.resolve().name
    name = alias or folder_name
    return name, frozenset({source, folder_name} - {name})


def _folder(source: str) -> Path | None:
    """The folder that is named, if there is one."""
    try:
        path = Path(source).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, of a user who does not exist, or no name at all
        return None


def configured(given: str, settings: Settings, *, alias: str | None = None) -> Entry:
    """A model that is not in memory. ``alias`` wins over one in ``given``."""
    if alias is not None:
        given = f"{alias}={split_alias(given)[1]}"
    name, aliases = names_of(given)
    return Entry(
        name,
        aliases,
        load=partial(_load, given, settings),
        survey=partial(_survey, given, settings),
        weigh=partial(_weigh, given, settings),
    )


def _load(given: str, settings: Settings) -> Served:
    from fermi.server.loading import load_served  # late: what it imports takes longer than a server may to listen

    return load_served(given, settings)


def _survey(given: str, settings: Settings) -> Facts | None:
    from fermi.server.loading import facts_of

    return facts_of(given, settings)


def _weigh(given: str, settings: Settings) -> int:
    from fermi.server.loading import weight_of

    return weight_of(given, settings)
