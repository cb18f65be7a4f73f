"""A real checkpoint writes the story that it is known to write."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from fermi import _C
from fermi.models import load_model
from models.drive import Driver

BEGINNING = 1  # its beginning-of-sequence token


def test_stories260k(stories260k: Path, backend: _C.Backend) -> None:
    model = load_model(stories260k, backend=backend)
    assert (model.dtype, model.vocab_size, model.max_position_embeddings) == ("f32", 512, 512)
    tokens = Driver(model).greedy([BEGINNING], 200)
    text = tokenizers.Tokenizer.from_file(str(stories260k / "tokenizer.json")).decode(tokens)
    assert text.lstrip() == (stories260k / "expected.txt").read_text()
