"""``fermi generate``: continue a text."""

from __future__ import annotations

import argparse
import sys

from fermi.cli.flags import add_setting_flags, settings_from

HELP = "Continue a text with a model, and print it."
SECTIONS = ("model", "engine", "cache", "generation", "cli")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text, and the settings."""
    parser.add_argument("prompt", help="The text to continue; - reads it from the standard input.")
    parser.add_argument("--seed", type=int, help="Makes the reply reproducible.")
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Print the continuation while it is made."""
    settings = settings_from(arguments)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    from fermi.cli.reply import stream_reply
    from fermi.defaults import Defaults
    from fermi.loader import load_generator

    loaded = load_generator(settings.model.id, settings)
    params = Defaults.of(settings.generation, loaded.generation_config).sampling_params(seed=arguments.seed)
    for piece in stream_reply(loaded, loaded.tokenizer.encode(prompt), params, settings.cli.timeout_ms):
        print(piece, end="", flush=True)
    print()
    return 0
