"""Models of texts: one vector for each token sequence, or one score for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.errors import UnsupportedModelError
from fermi.models.bert import Bert
from fermi.models.checkpoint import Checkpoint
from fermi.models.classifier import (
    ActivationOf,
    Head,
    answer_head,
    answer_settings,
    decoder_label_head,
    label_head,
    score_activation,
)
from fermi.models.decoder import Decoder
from fermi.models.distilbert import DistilBert
from fermi.models.encoder import Encoder, Int32, ModernNames, TokenSequence
from fermi.models.fields import Fields
from fermi.models.inputs import Batch, KVCache
from fermi.models.layers import LayerNorm
from fermi.models.modernbert import ModernBert
from fermi.models.mpnet import MPNet
from fermi.models.nomic_bert import NomicBert
from fermi.models.pooling import SCORES, Dense, Normalize, Pooling, Step
from fermi.models.roberta import Roberta
from fermi.models.sentence_modules import FILE, Module, SentenceModules, TextSettings
from fermi.models.weights import Transform, Weights

__all__ = ["ENCODERS", "EmbeddingModel", "Task", "TokenSequence", "is_embedding_model", "load_embedding_model"]

#: By config.json's model_type.
ENCODERS: Mapping[str, type[Encoder[Any]]] = MappingProxyType(
    {
        "bert": Bert,
        "distilbert": DistilBert,
        "modernbert": ModernBert,
        "mpnet": MPNet,
        "nomic_bert": NomicBert,
        "roberta": Roberta,
        "xlm-roberta": Roberta,
    }
)

Task: TypeAlias = Literal["embed", "score"]

Vectors: TypeAlias = npt.NDArray[np.float32]

CLASSIFIER = "ForSequenceClassification"

#: Tokens of a step of a decoder, and of a block of its cache.
STEP_TOKENS = 1024
BLOCK_SIZE = 16

#: sentence-transformers' layer norm has PyTorch's epsilon.
LAYER_NORM_EPSILON = 1e-5


class Body(Protocol):
    """What makes hidden states of tokens.

    Attributes:
        reach: tokens of the longest sequence.
        needs_type_ids: whether tokens of a second text differ from those of the first.
    """

    backend: _C.Backend
    hidden_size: int
    vocab_size: int
    reach: int
    needs_type_ids: bool

    def run(
        self, sequences: Sequence[TokenSequence], rows: Int32 | None, finish: Callable[[_C.Tensor], _C.Tensor]
    ) -> Vectors:
        """What ``finish`` makes of the hidden states, [tokens, hidden_size], or of those of the tokens in ``rows``."""


class EncoderBody:
    """All sequences at once."""

    def __init__(self, encoder: Encoder[Any]) -> None:
        self._encoder = encoder
        self.backend = encoder.backend
        self.hidden_size = encoder.config.hidden_size
        self.vocab_size = encoder.config.vocab_size
        self.reach = encoder.max_seq_length
        self.needs_type_ids = encoder.config.type_vocab_size > 1

    def run(
        self, sequences: Sequence[TokenSequence], rows: Int32 | None, finish: Callable[[_C.Tensor], _C.Tensor]
    ) -> Vectors:
        batch = self._encoder.batch(sequences)
        with _C.record(self.backend) as step:
            out = finish(self._encoder(batch, None if rows is None else _C.Tensor.from_numpy(rows)))
        step.run()
        return out.float32()


class Part(NamedTuple):
    """Some tokens of a sequence."""

    sequence: int
    start: int
    tokens: int


class DecoderBody:
    """In steps of some tokens, one sequence after the other, with a cache that lives as long as the call."""

    def __init__(self, decoder: Decoder[Any]) -> None:
        self._decoder = decoder
        self.backend = decoder.backend
        self.hidden_size = decoder.config.hidden_size
        self.vocab_size = decoder.vocab_size
        self.reach = decoder.max_position_embeddings
        self.needs_type_ids = False

    def run(
        self, sequences: Sequence[TokenSequence], rows: Int32 | None, finish: Callable[[_C.Tensor], _C.Tensor]
    ) -> Vectors:
        lengths = [len(sequence.token_ids) for sequence in sequences]
        blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        steps = list(parts_of_steps(lengths))
        capacity = max(sum(blocks[part.sequence] for part in step) for step in steps)
        cache = KVCache.allocate(self._decoder.kv_spec, capacity, BLOCK_SIZE, self.backend)
        tables: dict[int, list[int]] = {}  # of the sequences that are not done
        states, done = [], 0
        for step in steps:
            held = {block for table in tables.values() for block in table}
            free = (block for block in range(capacity) if block not in held)
            for part in step:
                if part.sequence not in tables:
                    tables[part.sequence] = [next(free) for _ in range(blocks[part.sequence])]
            tokens = sum(part.tokens for part in step)
            wanted = np.arange(tokens) if rows is None else rows[(rows >= done) & (rows < done + tokens)] - done
            states.append(self._run([sequences[part.sequence] for part in step], step, tables, cache, int32(wanted)))
            done += tokens
            for part in step:
                if part.start + part.tokens == lengths[part.sequence]:
                    del tables[part.sequence]
        with _C.record(self.backend) as last:
            out = finish(_C.Tensor.from_numpy(np.concatenate(states)))
        last.run()
        return out.float32()

    def _run(
        self,
        sequences: Sequence[TokenSequence],
        parts: Sequence[Part],
        tables: Mapping[int, list[int]],
        cache: KVCache,
        rows: _C.Tensor,
    ) -> Vectors:
        """The hidden states of a step's ``rows``."""
        batch = step_batch(sequences, parts, [tables[part.sequence] for part in parts], rows)
        with _C.record(self.backend) as step:
            states = _C.gather_rows(self._decoder.hidden_states(batch, cache), rows)
        step.run()
        return states.float32()


def parts_of_steps(lengths: Sequence[int]) -> Iterator[list[Part]]:
    """The tokens of sequences, in order, cut into steps."""
    step: list[Part] = []
    room = STEP_TOKENS
    for sequence, length in enumerate(lengths):
        start = 0
        while start < length:
            count = min(room, length - start)
            step.append(Part(sequence, start, count))
            start, room = start + count, room - count
            if not room:
                yield step
                step, room = [], STEP_TOKENS
    if step:
        yield step


def step_batch(
    sequences: Sequence[TokenSequence], parts: Sequence[Part], tables: Sequence[Sequence[int]], rows: _C.Tensor
) -> Batch:
    """The parts of these sequences, whose blocks are ``tables``, as a decoder takes them."""
    token_ids, positions, lengths, slots = [], [], [], []
    block_tables = np.zeros((len(parts), max(map(len, tables))), dtype=np.int32)
    for row, (sequence, part, table) in enumerate(zip(sequences, parts, tables, strict=True)):
        block_tables[row, : len(table)] = table
        places = np.arange(part.start, part.start + part.tokens)
        token_ids.append(np.asarray(sequence.token_ids[part.start : part.start + part.tokens]))
        positions.append(places)
        lengths.append(np.full(part.tokens, len(sequence.token_ids)))
        slots.append(block_tables[row, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE)
    return Batch(
        token_ids=int32(np.concatenate(token_ids)),
        positions=int32(np.concatenate(positions)),
        rope_lengths=int32(np.concatenate(lengths)),
        slots=(int32(np.concatenate(slots)),),
        query_starts=int32(np.cumsum([0] + [part.tokens for part in parts])),
        context_lengths=int32([part.start + part.tokens for part in parts]),
        block_tables=(_C.Tensor.from_numpy(block_tables),),
        logit_rows=rows,
    )


def int32(values: npt.ArrayLike) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.asarray(values, dtype=np.int32))


class EmbeddingModel:
    """A model that makes one row of numbers of each token sequence. For one thread.

    Attributes:
        task: embed: the rows are vectors; score: they are scores, of one label or of several.
        dim: numbers of a row.
        max_seq_length: tokens of a sequence, at most.
        vocab_size: token ids are below this.
        needs_type_ids: whether the model tells a first text from a second by type ids.
        do_lower_case: whether its texts are lowercased before the tokenizer sees them.
        backend: the device that it runs on.
        parameters: how many numbers the weights hold; ``weight_bytes``: what they take.
    """

    def __init__(
        self, body: Body, head: Head, *, task: Task, text: TextSettings, parameters: int, weight_bytes: int
    ) -> None:
        self._body = body
        self._head = head
        self.task = task
        self.dim = head.size
        self.max_seq_length = min(body.reach, text.max_seq_length or body.reach)
        self.vocab_size = body.vocab_size
        self.needs_type_ids = body.needs_type_ids
        self.do_lower_case = text.do_lower_case
        self.backend = body.backend
        self.parameters, self.weight_bytes = parameters, weight_bytes

    def encode(self, sequences: Sequence[TokenSequence]) -> Vectors:
        """One packed batch, without padding: float32 [sequences, dim].

        Raises ValueError for a sequence without tokens, one that is longer than the model reaches, and for token or
        type ids that the model does not have.
        """
        if not sequences:
            return np.empty((0, self.dim), dtype=np.float32)
        lengths = [len(sequence.token_ids) for sequence in sequences]
        if min(lengths) == 0:
            raise ValueError(f"sequence {lengths.index(0)} has no tokens")
        if max(lengths) > self._body.reach:
            raise ValueError(f"a sequence of {max(lengths)} tokens is longer than the model's {self._body.reach}")
        starts = np.cumsum([0, *lengths], dtype=np.int32)
        rows = self._head.pooling.rows(starts)

        def finish(x: _C.Tensor) -> _C.Tensor:
            x = self._head.pooling(x, starts) if rows is None else x
            for step in self._head.steps:
                x = step(x)
            return x

        return self._body.run(sequences, rows, finish)


def is_embedding_model(folder: Path) -> bool:
    """Whether a folder holds a model that makes vectors or scores of texts: by modules.json and by config.json."""
    folder = Path(folder)
    if (folder / FILE).is_file():
        return True
    fields = Fields.from_file(folder / "config.json")
    return fields.raw("model_type") in ENCODERS or _is_classifier(fields)


def load_embedding_model(
    folder: Path,
    *,
    backend: _C.Backend,
    dtype: str = "auto",
    transform: Transform | None = None,
    task: Task | None = None,
) -> EmbeddingModel:
    """The model in a folder of config.json, safetensors and, where sentence-transformers has saved it, modules.json.

    ``dtype``, ``transform``: as for `load_model`. ``task``: None: what the files say. A decoder without modules.json
    embeds a text by its last token, and scores a pair by how likely it answers "yes" (Qwen3-Reranker).

    Raises UnsupportedModelError naming a field or module that is not honoured, CheckpointError naming the file and what
    is wrong with it, ConfigError for an unknown dtype.
    """
    folder = Path(folder)
    modules = SentenceModules.read(folder)
    place = folder if modules is None else modules.transformer
    loader = Loader(place, backend=backend, dtype=dtype, transform=transform)
    return loader.load(folder, modules, task)


class Loader:
    """Reads the files of one model."""

    def __init__(self, place: Path, *, backend: _C.Backend, dtype: str, transform: Transform | None) -> None:
        """``place``: the folder of config.json."""
        self.fields = Fields.from_file(place / "config.json")
        self.place = place
        self.backend = backend
        self.dtype = dtype
        self.weights = Weights(ModernNames(Checkpoint(place)), backend=backend, dtype=dtype, transform=transform)
        self.opened = [self.weights]

    def load(self, folder: Path, modules: SentenceModules | None, task: Task | None) -> EmbeddingModel:
        text = TextSettings.read(self.place)
        settings = folder / "config_sentence_transformers.json"
        activation_fields = Fields.from_file(settings) if settings.is_file() else Fields({}, settings)
        rest = () if modules is None else modules.rest
        found = self._task(text, rest)
        if task is not None and modules is not None and task != found:
            raise UnsupportedModelError(f"{folder / FILE}: is of a model to {found}, not to {task}")
        task = task or found
        model = self._encoder() if self.fields.raw("model_type") in ENCODERS else self._decoder(task, rest)

        def activation(labels: int) -> _C.ActivationName | None:
            return score_activation(self.fields, activation_fields, labels)

        body: Body = EncoderBody(model) if isinstance(model, Encoder) else DecoderBody(model)
        if rest and rest[0].kind == "Pooling":
            head = self._head(rest, body.hidden_size, activation)
        elif task == "embed":
            head = Head(Pooling("mean" if isinstance(model, Encoder) else "lasttoken"), (), body.hidden_size)
        else:
            head = self._score_head(model, rest, activation)
        for weights in self.opened:
            weights.check()
        return EmbeddingModel(
            body,
            head,
            task=task,
            text=text,
            parameters=sum(weights.parameters for weights in self.opened),
            weight_bytes=sum(weights.nbytes for weights in self.opened),
        )

    def _task(self, text: TextSettings, rest: Sequence[Module]) -> Task:
        if any(module.kind == "LogitScore" for module in rest):
            return "score"
        if rest and _puts_out_scores(rest[-1]):
            return "score"
        if rest:
            return "embed"
        return "score" if text.task == "sequence-classification" or _is_classifier(self.fields) else "embed"

    def _encoder(self) -> Encoder[Any]:
        architecture = self.fields.choice("model_type", ENCODERS)
        config = architecture.read_config(self.fields)
        self.fields.refuse_rest()
        return architecture(config, architecture.body(self.weights))

    def _decoder(self, task: Task, rest: Sequence[Module]) -> Decoder[Any]:
        from fermi.models import ARCHITECTURES

        architecture = self.fields.choice("model_type", ARCHITECTURES, default="absent")
        config = architecture.read_config(self.fields)
        self.fields.ignore(frozenset({"sentence_transformers", "sbert_ce_default_activation_function"}))
        self.fields.refuse_rest()
        if task == "embed" or _is_classifier(self.fields) or any(module.kind == "Pooling" for module in rest):
            config = replace(config, tie_word_embeddings=True)  # there may be no head, and none is needed
        return architecture(config, self.weights)

    def _head(self, rest: Sequence[Module], hidden: int, activation: ActivationOf) -> Head:
        """Pooling and what follows it."""
        pooling = Pooling.read(rest[0].fields(), hidden)
        size = hidden * len(pooling.modes)
        steps: list[Step] = []
        for module in rest[1:]:
            fields = module.fields()
            if module.kind == "Normalize":
                for name in ("module_input_name", "module_output_name"):
                    fields.expect(name, "sentence_embedding")
                fields.refuse_rest()
                steps.append(Normalize(size))
            elif module.kind == "Dense":
                dense = Dense.read(fields, partial(self._open, module.folder), size)
                size = dense.size
                if _puts_out_scores(module):
                    dense.activation = dense.activation or activation(size)
                steps.append(dense)
            else:
                fields.expect("dimension", size)
                fields.refuse_rest()
                steps.append(LayerNorm(self._open(module.folder).under("norm"), size, LAYER_NORM_EPSILON))
        return Head(pooling, tuple(steps), size)

    def _open(self, folder: Path) -> Weights:
        """The weights of a module; they are few, and never packed."""
        self.opened.append(Weights(Checkpoint(folder), backend=self.backend, dtype=self.dtype))
        return self.opened[-1]

    def _score_head(self, model: Encoder[Any] | Decoder[Any], rest: Sequence[Module], activation: ActivationOf) -> Head:
        if isinstance(model, Encoder):
            if rest:
                raise UnsupportedModelError(f"{self.place}: {rest[0].kind} needs a decoder's logits")
            return label_head(model, self.fields, self.weights, activation)
        if _is_classifier(self.fields):
            return decoder_label_head(model, self.fields, self.weights, activation)
        settings = rest[0].fields() if rest else answer_settings(self.place)
        return answer_head(model, settings, activation(1))


def _puts_out_scores(module: Module) -> bool:
    return module.kind == "Dense" and module.fields().raw("module_output_name") == SCORES


def _is_classifier(fields: Fields) -> bool:
    return any(name.endswith(CLASSIFIER) for name in fields.strings("architectures"))
