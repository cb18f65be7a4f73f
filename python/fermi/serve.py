"""``python -m fermi.serve``: the HTTP server, the same as ``fermi serve``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fermi.cli import command, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve with these arguments, the process's own by default; returns the exit code."""
    serve = command("serve")
    parser = argparse.ArgumentParser(prog="python -m fermi.serve", description=serve.HELP)
    serve.add_arguments(parser)
    return guarded(serve, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
