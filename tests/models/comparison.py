"""What Transformers computes, and how far from it something else is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import transformers


def reference_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def reference_greedy(model: transformers.PreTrainedModel, tokens: list[int], count: int) -> list[int]:
    with torch.no_grad():
        output = model.generate(torch.tensor([tokens]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return output[0, len(tokens) :].tolist()


def largest_error(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """As a share of the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
