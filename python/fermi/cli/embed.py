"""``fermi embed``: texts to vectors, a line of JSON for each."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator

from fermi.cli.flags import add_setting_flags, settings_from
from fermi.errors import ConfigError

HELP = "Embed texts, and print a line of JSON for each: index, embedding, tokens."
SECTIONS = ("model", "engine", "cache")

#: Lines of the standard input that are embedded together.
CHUNK = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The texts, how to embed them, and the settings."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="Without any, each line of the standard input is one.")
    parser.add_argument("--prompt-name", metavar="NAME", help="A prompt of the checkpoint's, such as query.")
    parser.add_argument("--prompt", metavar="TEXT", help="What to put before each text.")
    parser.add_argument("--dimensions", type=int, metavar="N", help="Numbers of each vector that are kept.")
    parser.add_argument("--normalize", action="store_true", help="Bring vectors to length 1 where the model does not.")
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Print the vectors while they are made."""
    settings = settings_from(arguments)
    from fermi.embedding import TextEmbedder
    from fermi.loader import LoadedEmbedder, load

    loaded = load(settings.model.id, settings)
    if not isinstance(loaded, LoadedEmbedder):
        raise ConfigError(f"{settings.model.id} generates text and does not embed: name an embedding model by --model")
    embedder = TextEmbedder(loaded)
    before = loaded.sentences.prompt(arguments.prompt_name, arguments.prompt)
    lines = arguments.texts or (line.rstrip("\r\n") for line in sys.stdin)
    count = 0
    for chunk in _chunks(lines):
        for output in embedder.embed(
            chunk, prompt=before, normalize=arguments.normalize or None, dimensions=arguments.dimensions
        ):
            vector = [float(f"{number:.9g}") for number in output.embedding.tolist()]
            line = {"index": count, "embedding": vector, "tokens": len(output.prompt_token_ids)}
            print(json.dumps(line), flush=True)
            count += 1
    return 0


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(lines)
    while chunk := list(itertools.islice(rest, CHUNK)):
        yield chunk
