"""The arrays of a step, against what each token should find in them."""

from __future__ import annotations

import numpy as np

from fermi.engine.batch import DecodeArrays, MixedArrays
from fermi.engine.plan import Work
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Group, Request, Sequence, Table

BLOCK = 4


def sequence(prompt: list[int], output: list[int], blocks: list[int], *further: list[int]) -> Sequence:
    """``further``: the blocks of other groups of layers."""
    request = Request(id="r", prompt_token_ids=prompt, sampling=Sampling())
    made = Group(request, 0.0, 0, b"").sequences[0]
    made.token_ids.extend(output)
    made.tables = [Table(each) for each in (blocks, *further)]
    return made


def test_a_decode_step() -> None:
    arrays = DecodeArrays(2, 5, BLOCK)
    first, second = sequence([7, 8, 9], [1, 2], [6, 3]), sequence([5], [4], [9])
    arrays.fill([Work(first, 4, 1, [first]), Work(second, 1, 1, [second])])
    batch = arrays.batch
    assert batch.token_ids.numpy().tolist() == [2, 4]
    assert batch.positions.numpy().tolist() == [4, 1]
    assert batch.rope_lengths.numpy().tolist() == [5, 2]
    assert batch.slots[0].numpy().tolist() == [3 * BLOCK, 9 * BLOCK + 1]
    assert batch.query_starts.numpy().tolist() == [0, 1, 2]
    assert batch.context_lengths.numpy().tolist() == [5, 2]
    assert batch.block_tables[0].numpy()[0, :2].tolist() == [6, 3]
    assert batch.block_tables[0].numpy()[1, :1].tolist() == [9]
    assert batch.logit_rows.numpy().tolist() == [0, 1]


def test_a_mixed_step() -> None:
    prompt = sequence(list(range(10, 20)), [], [2, 0, 5])
    again = sequence([1, 2], [3, 4], [7])  # preempted: output is computed again, with rotary lengths of its own
    arrays = MixedArrays(10, 2, 1, 5, BLOCK)
    arrays.fill([Work(prompt, 3, 6), Work(again, 0, 4, [again])])
    batch = arrays.batch
    assert batch.token_ids.numpy().tolist() == [13, 14, 15, 16, 17, 18, 1, 2, 3, 4]
    assert batch.positions.numpy().tolist() == [3, 4, 5, 6, 7, 8, 0, 1, 2, 3]
    assert batch.rope_lengths.numpy().tolist() == [10] * 6 + [2, 2, 3, 4]
    assert batch.slots[0].numpy().tolist() == [11, 0, 1, 2, 3, 20, 28, 29, 30, 31]
    assert batch.query_starts.numpy().tolist() == [0, 6, 10]
    assert batch.context_lengths.numpy().tolist() == [9, 4]
    assert batch.block_tables[0].numpy()[:, :3].tolist() == [[2, 0, 5], [7, 0, 0]]
    assert batch.logit_rows.numpy().tolist() == [9]


def test_a_step_wants_the_logits_of_what_is_scored_and_of_what_draws() -> None:
    scored, quiet, drawing = (sequence([1, 2, 3, 4, 5], [], [0, 1]) for _ in range(3))
    work = [
        Work(scored, 1, 4, [scored], scored=2, scores=2),
        Work(quiet, 0, 2, scored=2),
        Work(drawing, 4, 1, [drawing], scored=4),
    ]
    arrays = MixedArrays(7, 3, 4, 2, BLOCK)
    arrays.fill(work)
    assert arrays.batch.logit_rows.numpy().tolist() == [1, 2, 3, 6]
    nothing = MixedArrays(2, 1, 0, 2, BLOCK)
    nothing.fill(work[1:2])
    assert nothing.batch.logit_rows.shape == (0,)


def test_arrays_are_filled_in_place() -> None:
    arrays = DecodeArrays(1, 3, BLOCK)
    view = np.asarray(arrays.batch.token_ids.numpy())
    part = sequence([1], [2], [0])
    arrays.fill([Work(part, 1, 1, [part])])
    assert view.tolist() == [2]


def test_groups_of_layers_have_slots_and_tables_of_their_own() -> None:
    prompt, talk = sequence(list(range(10, 20)), [], [2, 0], [1, 5]), sequence([1, 2], [3], [7], [3])
    mixed = MixedArrays(6, 2, 1, 5, BLOCK, groups=2)
    mixed.fill([Work(prompt, 2, 5), Work(talk, 2, 1, [talk])])
    assert [slots.numpy().tolist() for slots in mixed.batch.slots] == [[10, 11, 0, 1, 2, 30], [6, 7, 20, 21, 22, 14]]
    assert [tables.numpy()[:, :2].tolist() for tables in mixed.batch.block_tables] == [
        [[2, 0], [7, 0]],
        [[1, 5], [3, 0]],
    ]
    decode = DecodeArrays(1, 5, BLOCK, groups=2)
    decode.fill([Work(talk, 2, 1, [talk])])
    assert [slots.numpy().tolist() for slots in decode.batch.slots] == [[30], [14]]
    assert [tables.numpy()[0, 0] for tables in decode.batch.block_tables] == [7, 3]
    assert decode.batch.context_lengths.numpy().tolist() == [3]


def test_a_sequence_may_turn_as_a_longer_one() -> None:
    talk = sequence([1, 2], [3, 4], [7])
    talk.rope_length = 4
    mixed = MixedArrays(4, 1, 1, 5, BLOCK)
    mixed.fill([Work(talk, 0, 4, [talk])])
    assert mixed.batch.rope_lengths.numpy().tolist() == [4] * 4
    decode = DecodeArrays(1, 5, BLOCK)
    decode.fill([Work(talk, 1, 1, [talk])])
    assert decode.batch.rope_lengths.numpy().tolist() == [4]
