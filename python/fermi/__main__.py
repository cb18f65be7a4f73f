"""``python -m fermi``: the command line, the same as ``fermi``."""

from __future__ import annotations

import sys

from fermi.cli import main

if __name__ == "__main__":
    sys.exit(main())
