"""A tokenizer for checkpoints that have none: the words "0", "1", … are the tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

__all__ = ["with_tokenizer"]


def with_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Fills ``folder`` with what loaders expect of a published model: links to the weights, a tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps({**config, **special}))
    (folder / "generation_config.json").write_text(json.dumps(special))
    for path in checkpoint.glob("*.safetensors*"):
        os.symlink(path.resolve(), folder / path.name)
    words = {str(token): token for token in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "0", "eos_token": "0", "unk_token": "0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
