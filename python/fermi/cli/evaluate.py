"""``fermi evaluate``: how well a model foretells a text, and how far it is from the one that it was quantized from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fermi.cli.flags import add_setting_flags, settings_from
from fermi.cli.quantize import read_text
from fermi.errors import ConfigError

if TYPE_CHECKING:
    from fermi.loader import LoadedModel
    from fermi.quantization import Fidelity

HELP = "Print a model's perplexity over a text, and its distance from a reference in float32."
SECTIONS = ("engine", "cache")

#: Tokens that the models see together.
WINDOW = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the reference, the text, and the settings of the engine."""
    parser.add_argument("model.id", nargs=1, metavar="MODEL", help="A folder, an id on the Hugging Face hub, or demo.")
    parser.add_argument(
        "--against", metavar="MODEL", help="The reference. Default: MODEL itself, unless that is quantized on disk."
    )
    parser.add_argument("--text", metavar="FILE", type=Path, help="Default: a text that the reference makes up.")
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="Tokens of the text to evaluate. Default: 4096."
    )
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print a table."""
    settings = settings_from(arguments)
    from fermi.loader import is_quantized, load_generator, reference_settings
    from fermi.sampled_text import sampled_text

    if arguments.tokens < 2:
        raise ConfigError(f"--tokens: must be at least 2, not {arguments.tokens}")
    text = None if arguments.text is None else read_text(arguments.text)
    against = arguments.against
    if against is None and is_quantized(settings.model.id, settings):
        raise ConfigError(f"{settings.model.id} is quantized: name by --against the model that it was made of")
    reference = load_generator(against or settings.model.id, reference_settings(settings))
    model = load_generator(settings.model.id, settings)
    if text is None:
        texts = max(1, arguments.tokens // min(WINDOW, reference.engine.max_model_len))
        windows = sampled_text(reference.engine, reference.tokenizer, texts=texts, tokens=WINDOW, seed=0)
    else:
        windows = windows_of(reference.tokenizer.encode(text)[: arguments.tokens], reference.engine.max_model_len)
    print(report(compare(reference, model, windows), against or settings.model.id, settings.model.id))
    return 0


def windows_of(token_ids: Sequence[int], longest: int) -> list[list[int]]:
    """A text in parts that are evaluated on their own. ConfigError where it is too short."""
    size = min(WINDOW, longest)
    windows = [list(token_ids[start : start + size]) for start in range(0, len(token_ids), size)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise ConfigError("the text has fewer than two tokens")
    return windows


def compare(reference: LoadedModel, model: LoadedModel, windows: Sequence[Sequence[int]]) -> Fidelity:
    """Both over the same tokens. ConfigError where they cannot be compared."""
    from fermi.quantization import Fidelity

    if reference.model.vocab_size != model.model.vocab_size:
        raise ConfigError(
            f"the models have {reference.model.vocab_size} and {model.model.vocab_size} tokens: they cannot be compared"
        )
    fidelity = Fidelity()
    for window in windows:
        fidelity.add(reference.engine.logits(window)[:-1], model.engine.logits(window)[:-1], window[1:])
    return fidelity


def report(fidelity: Fidelity, reference: str, model: str) -> str:
    """The table."""
    change = 100 * (fidelity.perplexity / fidelity.reference_perplexity - 1)
    return "\n".join(
        (
            f"tokens           {fidelity.tokens:,}",
            f"perplexity       {fidelity.reference_perplexity:.4f}  {reference}, float32",
            f"                 {fidelity.perplexity:.4f}  {model} ({change:+.2f} %)",
            f"KL divergence    {fidelity.mean_divergence:.3g} nats, at most {fidelity.largest_divergence:.3g}",
            f"same next token  {100 * fidelity.agreement:.2f} %",
        )
    )
