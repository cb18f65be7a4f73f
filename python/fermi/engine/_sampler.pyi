"""Choice of tokens from logits, compiled: no Python per token of the vocabulary, no GIL."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

def philox(seed: int, stream: int, index: int) -> tuple[int, int, int, int]:
    """Four random 32-bit words of Philox4x32-10 for a key and a counter (Salmon et al., SC 2011)."""

class Draws:
    """What one sequence's next token depends on besides its logits: parameters, the tokens so far, the random stream."""

    def __init__(
        self,
        *,
        vocab_size: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] = ...,
        seed: int = 0,
        stream: int = 0,
        min_tokens: int = 0,
        stop_token_ids: Iterable[int] = (),
        prompt_token_ids: Iterable[int] = (),
    ) -> None:
        """``stream`` tells sequences of one seed apart. ``stop_token_ids`` are not drawn before ``min_tokens`` tokens."""
    @property
    def drawn(self) -> int:
        """Tokens accepted so far: the index of the next draw."""
    def accept(self, token_id: int) -> None:
        """Counts a token as drawn."""
    def allow(self, mask: npt.NDArray[np.uint32] | None) -> None:
        """Restricts draws to the set bits (token id = 32 * word + bit) of a [ceil(vocab / 32)] mask, read at each draw."""

class Sampler:
    """Scratch memory for rows of one vocabulary size. Not for two threads at once."""

    def __init__(self, vocab_size: int, threads: int = 1) -> None:
        """``threads``: that share the rows of one call, where they are many."""
    @property
    def vocab_size(self) -> int: ...
    def sample(self, logits: npt.NDArray[np.float32], rows: list[int], draws: list[Draws]) -> list[int]:
        """One token for each of ``draws`` from its row of ``logits`` [rows, vocab], which stay as they are.

        NaN counts as minus infinity; -1 stands for a row that leaves no token to draw. ``accept`` is not called."""
    def log_probabilities(
        self, logits: npt.NDArray[np.float32], rows: list[int], token_ids: list[int], top: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Log-softmax of the raw logits: of each token [n], its rank from 1 [n], the ``top`` largest ids [n, top], theirs
        [n, top]. The same logit always gives the same number; ids are -1 where the vocabulary has fewer."""
