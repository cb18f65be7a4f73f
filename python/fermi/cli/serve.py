"""``fermi serve``: the HTTP server."""

from __future__ import annotations

import argparse

from fermi.cli.flags import add_setting_flags, settings_from
from fermi.config import Settings

HELP = "Serve models over HTTP with OpenAI's API."
SECTIONS = ("model", "engine", "cache", "generation", "openai", "log")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of the server."""
    parser.add_argument("--print-config", action="store_true", help="Print each setting and its origin, and leave.")
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal. ConfigError names a bad setting."""
    settings = settings_from(arguments)
    if arguments.print_config:
        print_config(settings)
        return 0
    from fermi.server.run import run as run_server

    return run_server(settings)


def print_config(settings: Settings) -> None:
    """Print each setting, its value and where it came from."""
    rows = [(name, value, str(origin)) for name, value, origin in settings.table()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
