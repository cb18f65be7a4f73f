"""``fermi quantize``: a model's weights packed to int8 or int4, in a new folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from fermi.cli.flags import settings_from
from fermi.errors import ConfigError

HELP = "Write a model with packed weights to a new folder; it opens at once and reads less memory per token."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, where to, and how."""
    choices = ("int8", "int4", "keep")
    parser.add_argument("model.id", nargs=1, metavar="MODEL", help="A folder, an id on the Hugging Face hub, or demo.")
    parser.add_argument("-o", "--output", metavar="DIR", required=True, type=Path, help="The folder to make.")
    parser.add_argument("--format", choices=choices[:2], required=True, help="Of the projections.")
    parser.add_argument(
        "--group",
        type=int,
        metavar="COLUMNS",
        help="Columns that share a scale: 32, 64, 128, or 0 for a whole row. Default: 64 for int4, 0 for int8.",
    )
    parser.add_argument(
        "--asymmetric",
        action=argparse.BooleanOptionalAction,
        help="int4: a zero of its own for each group. Default: where --calibrate has a text.",
    )
    parser.add_argument("--head", choices=choices, default="int8", help="Of the output matrix. Default: int8.")
    parser.add_argument("--embeddings", choices=choices, help="Of the table of tokens. Default: as the head.")
    parser.add_argument(
        "--calibrate",
        metavar="FILE|auto|none",
        help="Pack by a text as the model will see; auto: one that the model makes up. It takes minutes per billion "
        "weights, and all of them in memory. Default: auto for int4 of very small models, else none.",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=18,
        metavar="N",
        help="Scales tried for each group; 1 is round to nearest. Default: 18.",
    )
    parser.add_argument("--threads", dest="engine.threads", metavar="THREADS", help="Default: one per physical core.")
    parser.add_argument(
        "--revision", dest="model.revision", metavar="REVISION", help="Branch, tag or commit on the hub."
    )
    parser.add_argument(
        "--offline", dest="model.offline", action="store_true", default=None, help="Use only files that are here."
    )
    parser.add_argument("--config", metavar="FILE", help="Configuration file.")


def run(arguments: argparse.Namespace) -> int:
    """Quantize, and say what came of it."""
    settings = settings_from(arguments)
    from fermi.loader import AUTO, NONE, quantize
    from fermi.quantization import Recipe

    recipe = Recipe(
        format=arguments.format,
        group=arguments.group,
        symmetric=None if arguments.asymmetric is None else not arguments.asymmetric,
        head=arguments.head,
        embeddings=arguments.embeddings,
        candidates=arguments.candidates,
    )
    calibration = arguments.calibrate
    if calibration not in (None, AUTO, NONE):
        calibration = read_text(Path(calibration))
    done = quantize(settings.model.id, arguments.output, recipe, settings, calibration=calibration)
    before, after = done.bytes_before / 1e6, done.bytes_after / 1e6
    print(f"{done.folder}: {done.matrices} matrices, {before:,.1f} MB → {after:,.1f} MB in {done.seconds:.1f} s")
    return 0


def read_text(path: Path) -> str:
    """The text of a file that the user named."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
