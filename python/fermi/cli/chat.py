"""``fermi chat``: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from fermi.cli.flags import add_setting_flags, settings_from
from fermi.config import Settings

HELP = "Talk to a model in the terminal; with a message, print the reply to it and leave."
SECTIONS = ("model", "engine", "cache", "generation", "cli")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The message, and the settings."""
    parser.add_argument("message", nargs="?", help="What to say; - reads it from the standard input.")
    parser.add_argument("--seed", type=int, help="Makes the replies reproducible.")
    parser.add_argument("--think", action="store_true", help="Let a model think that can; its thoughts are printed.")
    add_setting_flags(parser, SECTIONS)


def run(arguments: argparse.Namespace) -> int:
    """Answer one message, or each line of the terminal until its end."""
    settings = settings_from(arguments)
    talk = _Talk(settings, seed=arguments.seed, think=arguments.think and not settings.cli.disable_think)
    if arguments.message is not None:
        talk.say(sys.stdin.read() if arguments.message == "-" else arguments.message)
        return 0
    for line in _lines():
        talk.say(line)
    return 0


def _lines() -> Iterator[str]:
    """What the user types, without empty lines."""
    asks = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if asks else "")
        except EOFError:
            return
        if line.strip():
            yield line


class _Talk:
    """A conversation so far."""

    def __init__(self, settings: Settings, *, seed: int | None, think: bool) -> None:
        from fermi.defaults import Defaults
        from fermi.loader import load_generator

        self._loaded = load_generator(settings.model.id, settings)
        self._params = Defaults.of(settings.generation, self._loaded.generation_config).sampling_params(seed=seed)
        self._think = think
        self._timeout_ms = settings.cli.timeout_ms
        system = settings.cli.default_system_prompt
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []

    def say(self, text: str) -> None:
        """Print the reply to a message while it is made."""
        from fermi.cli.reply import stream_reply

        self._messages.append({"role": "user", "content": text})
        tokenizer = self._loaded.tokenizer
        prompt = tokenizer.chat_template.render(self._messages, enable_thinking=self._think)
        token_ids = tokenizer.encode(prompt, add_special_tokens=False)
        reply = ""
        for piece in stream_reply(self._loaded, token_ids, self._params, self._timeout_ms):
            reply += piece
            print(piece, end="", flush=True)
        print()
        self._messages.append({"role": "assistant", "content": reply})
