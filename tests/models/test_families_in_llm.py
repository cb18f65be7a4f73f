"""Every family through the engine: chunked prompts, batches, the prefix cache, and a chat with the server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers

from fermi import LLM, SamplingParams
from fermi.config import load_settings
from fermi.server.loading import load_served
from models.comparison import reference_greedy
from models.tiny_checkpoints import VOCABULARY, save
from server.running import serving

Reference = Callable[[str], transformers.PreTrainedModel]

#: One of each family, with windows where it has any.
NAMES = [
    "phi3 window",
    "phi3 partial longrope",
    "phi odd",
    "gemma",
    "gemma2 odd",
    "gemma3",
    "smollm3 window",
    "granite",
    "olmo2",
    "starcoder2 odd",
    "gpt2",
    "gpt_neox",
]

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def with_tokenizer(folder: Path, **config: object) -> Path:
    """Puts a tokenizer of whole words beside the model: w0, w1 …"""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_generation(name: str, reference: Reference, tmp_path: Path) -> None:
    model = reference(name)
    lengths = (3, 8, 17, 40) if "longrope" not in name else (17, 40)  # beyond the original context, all of them
    generator = np.random.default_rng(3)
    prompts = [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]
    expected = [reference_greedy(model, prompt, 20) for prompt in prompts]
    llm = LLM(with_tokenizer(save(model, tmp_path)), threads=1, block_size=8, max_num_batched_tokens=16, max_num_seqs=3)
    for _ in range(2):  # the second time from the prefix cache
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected


def test_a_dialogue_with_gpt2(reference: Reference, tmp_path: Path) -> None:
    """Turns are joined by EOS where there is no template, and a reply ends with it."""
    model = reference("gpt2")
    folder = with_tokenizer(save(model, tmp_path), tokenizer_class="GPT2Tokenizer", eos_token="w9")
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {"conversational": {"max_length": 1000}}
    (folder / "config.json").write_text(json.dumps(config))
    turns = [("user", "w5 w6"), ("assistant", "w7"), ("user", "w8")]
    messages = [{"role": role, "content": content} for role, content in turns]
    [token_ids] = [reference_greedy(model, [5, 6, 9, 7, 9, 8, 9], 20)]
    reply = token_ids[: token_ids.index(9)] if 9 in token_ids else token_ids
    served = load_served(f"tiny={folder}", load_settings({"engine.threads": 1}, environ={}, folder=folder))
    with serving(served) as server:
        completion = server.openai().chat.completions.create(
            model="tiny",
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=20,
        )
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 7
    assert completion.choices[0].message.content == " ".join(f"w{token_id}" for token_id in reply)
