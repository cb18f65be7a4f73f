"""The command line: ``fermi COMMAND``. A command is a module here with HELP, add_arguments and run, and a row below."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from fermi.errors import FermiError

COMMANDS = ("serve", "chat", "generate", "embed", "bench", "quantize", "evaluate")


class Command(Protocol):
    """What a command's module has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what it takes."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


def command(name: str) -> Command:
    """The module of a command. What is heavy it imports when it runs."""
    return cast(Command, importlib.import_module(f"fermi.cli.{name}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fermi`` with these arguments, the process's own by default; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fermi", description="An inference engine for small language models.")
    parser.add_argument("--version", action="store_true", help="Print the version and leave.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = command(name)
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.HELP))
    parsed = parser.parse_args(arguments)
    if parsed.version:
        from fermi import __version__

        print(f"fermi {__version__}")
        return 0
    if parsed.command is None:
        parser.print_help()
        return 2
    return guarded(command(parsed.command), parsed)


def guarded(module: Command, parsed: argparse.Namespace) -> int:
    """Run a command; an error that fermi foresaw is one line on stderr and exit code 1."""
    try:
        return module.run(parsed)
    except FermiError as error:
        print(f"fermi: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output is gone
        return 141
