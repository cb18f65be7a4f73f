"""The embedded demo model: a toy that is trained by this package and shipped with fermi."""

from __future__ import annotations

from pathlib import Path


def model_folder() -> Path:
    """The folder of the demo model, in the layout of a Hugging Face checkpoint."""
    return Path(__file__).parent / "model"
