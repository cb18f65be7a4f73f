"""A contestant of benchmarks/embeddings.py in a process of its own: texts in, vectors out, tokenizing included.

python -m contestants.embedding_worker NAME
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from contestants.worker import answer_calls

__all__ = ["NAMES"]

#: Texts of a batch, for those who pad.
BATCH = 32

Vectors = npt.NDArray[np.float32]


class TextEmbedder(Protocol):
    """Who takes part."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, in the order of the texts."""


class Fermi:
    """fermi's offline API, in float32, bfloat16 or int8."""

    def __init__(self, folder: Path, threads: int, dtype: str, quantization: str | None, batch_tokens: int) -> None:
        from fermi import LLM

        self._llm = LLM(
            folder,
            threads=threads,
            dtype=dtype,
            quantization=quantization,
            max_num_batched_tokens=batch_tokens,
            quantization_cache=False,
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        return np.stack([output.embedding for output in self._llm.embed(list(texts), use_tqdm=False)])


class SentenceTransformers:
    """sentence-transformers with PyTorch on the CPU, in float32."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self._model = SentenceTransformer(str(folder), device="cpu")

    def embed(self, texts: Sequence[str]) -> Vectors:
        return np.asarray(self._model.encode(list(texts), batch_size=BATCH, show_progress_bar=False))


class OnnxRuntime:
    """ONNX Runtime in float32: sorted and padded as sentence-transformers does, tokenized by the same library."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        graph = str(exported(folder))
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        rows: list[Vectors] = [np.empty(0, np.float32)] * len(texts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            encoded = self._tokenizer.encode_batch_fast([texts[place] for place in places])
            ids = np.array([each.ids for each in encoded])
            mask = np.array([each.attention_mask for each in encoded])
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            for place, row in zip(places, self._session.run(None, inputs)[0], strict=True):
                rows[place] = row
        return np.stack(rows)


def exported(folder: Path) -> Path:
    """The model with mean pooling and normalisation as an ONNX graph with free batch and length, made once."""
    import torch
    from checkpoints import cache_folder, made_once
    from transformers import AutoModel

    class Sentence(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            states = self.model(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(means, dim=1)

    def export(place: Path) -> None:
        ids = torch.ones(2, 16, dtype=torch.int64)
        names = ["input_ids", "attention_mask", "token_type_ids"]
        with torch.no_grad():
            torch.onnx.export(
                Sentence(),
                (ids, ids, torch.zeros_like(ids)),
                str(place / "model.onnx"),
                input_names=names,
                output_names=["vectors"],
                dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
                opset_version=17,
                dynamo=False,  # its graph is the faster one of the two exporters'
            )

    return made_once(cache_folder() / f"onnx-{folder.parent.name}", export) / "model.onnx"


MAKERS: Mapping[str, Callable[[Path, int, int], TextEmbedder]] = {
    "fermi f32": lambda folder, threads, tokens: Fermi(folder, threads, "float32", None, tokens),
    "fermi bf16": lambda folder, threads, tokens: Fermi(folder, threads, "bfloat16", None, tokens),
    "fermi int8": lambda folder, threads, tokens: Fermi(folder, threads, "auto", "int8", tokens),
    "sentence-transformers": lambda folder, threads, _: SentenceTransformers(folder, threads),
    "onnxruntime": lambda folder, threads, _: OnnxRuntime(folder, threads),
}
NAMES = tuple(MAKERS)


def calls(name: str) -> Mapping[str, Callable[..., Any]]:
    """What the contestant answers to."""
    opened: list[TextEmbedder] = []

    def open_model(folder: str, threads: int, batch_tokens: int) -> None:
        opened.append(MAKERS[name](Path(folder), threads, batch_tokens))

    def embed(texts: Sequence[str], out: str | None = None) -> float:
        """Seconds; the vectors go to the file ``out``."""
        start = time.perf_counter()
        vectors = opened[0].embed(texts)
        seconds = time.perf_counter() - start
        if out is not None:
            np.save(out, vectors)
        return seconds

    return {"open": open_model, "embed": embed}


if __name__ == "__main__":
    answer_calls(lambda: calls(sys.argv[1]))
