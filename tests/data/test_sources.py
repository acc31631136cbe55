"""Batches: same content in any order of the file, exact positions, prefetch that changes nothing."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.data.base import Split
from decoct.data.hashing import text_keys
from decoct.data.sources import Batches, Together, ordered
from decoct.errors import DataError
from decoct.outputs import Batch


def toy(count: int = 23) -> Split:
    texts = [f"t{i % 20}" for i in range(count)]
    return Split({"text": texts, "label": np.arange(count)}, text_keys(texts))


def collate(split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
    values = torch.from_numpy(split.columns["label"][indices])
    seen = torch.zeros(len(indices), dtype=torch.int64) if seeds is None else torch.from_numpy(seeds.view(np.int64))
    return Batch({"student": values, "teacher": seen}, keys=split.keys[indices], view=view)


def source(split: Split | None = None, **options) -> Batches:
    return Batches(split or toy(), collate, **{"batch_size": 4, "seed": 7, "augment": True} | options)


def facts(batch: Batch) -> tuple:
    return batch.inputs["student"].tolist(), batch.inputs["teacher"].tolist(), batch.keys.tolist(), batch.view


def stream(batches: Batches, count: int) -> list[tuple]:
    def endless():
        while True:
            yield from batches

    return [facts(batch) for batch in islice(endless(), count)]


def test_each_epoch_visits_every_sample_once_in_another_order() -> None:
    batches = source()
    epochs = [[i for batch in batches for i in batch.inputs["student"].tolist()] for _ in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches.length == 6


def test_order_and_views_depend_on_content_not_on_position() -> None:
    split = toy()
    permutation = np.random.default_rng(0).permutation(len(split))
    assert stream(source(split), 12) == stream(source(split.take(permutation)), 12)


def test_seed_changes_order_and_views() -> None:
    assert stream(source(), 6) != stream(source(seed=8), 6)


def test_views_do_not_depend_on_batch_composition() -> None:
    def views(size: int) -> dict[int, int]:
        return {
            sample: view
            for batch in source(batch_size=size)
            for sample, view in zip(batch.inputs["student"].tolist(), batch.inputs["teacher"].tolist())
        }

    assert views(4) == views(9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.booleans(), st.booleans(), st.integers(0, 3))
def test_resumes_at_any_batch(consumed: int, drop_last: bool, shuffle: bool, prefetch: int) -> None:
    options = {"drop_last": drop_last, "shuffle": shuffle, "prefetch": prefetch}
    whole = stream(source(**options), 25)
    first = source(**options)
    stream(first, consumed)
    second = source(**options)
    second.load_state_dict(first.state_dict())
    assert stream(second, 25 - consumed) == whole[consumed:]


def test_position_counts_batches_handed_out_not_those_made_ahead() -> None:
    batches = source(prefetch=3)
    iterator = iter(batches)
    next(iterator)
    next(iterator)
    assert batches.state_dict() == {"epoch": 0, "batch": 2}
    iterator.close()
    assert [facts(b) for b in batches] == stream(source(), 6)[2:]


def test_breaking_off_and_going_on() -> None:
    batches = source()
    for _ in batches:
        break
    assert [facts(b) for b in batches] == stream(source(), 6)[1:]


def test_an_error_while_prefetching_reaches_the_consumer() -> None:
    def broken(split: Split, indices: np.ndarray, **_: object) -> Batch:
        raise DataError("sample 3 is damaged")

    with pytest.raises(DataError, match="sample 3"):
        list(Batches(toy(), broken, batch_size=4, seed=0, prefetch=2))


def test_only_labelled() -> None:
    split = replace(toy(), labelled=np.arange(23) % 2 == 0)
    seen = [i for batch in source(split, only="labelled") for i in batch.inputs["student"].tolist()]
    assert sorted(seen) == list(range(0, 23, 2))


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DataError, match="from 0 samples"):
        source(replace(toy(), labelled=np.zeros(23, bool)), only="labelled")
    with pytest.raises(DataError, match="batch of 30"):
        source(batch_size=30, drop_last=True)


def test_a_position_outside_the_epoch_is_an_error() -> None:
    with pytest.raises(DataError, match="batch 6 of an epoch of 6"):
        source().load_state_dict({"epoch": 0, "batch": 6})


def test_together_resumes_both() -> None:
    def both() -> Together:
        return Together(source(), {"held_out": source(toy(9), seed=1)})

    def seen(batches: Together, count: int) -> list[tuple]:
        found: list[tuple] = []
        while len(found) < count:
            for batch in batches:
                found.append((facts(batch), facts(batch.also["held_out"])))
                if len(found) == count:
                    break
        return found

    whole = seen(both(), 15)
    first = both()
    assert seen(first, 8) == whole[:8]
    second = both()
    second.load_state_dict(first.state_dict())
    assert seen(second, 7) == whole[8:]


def test_ordered_is_the_order_of_the_split() -> None:
    batches = list(ordered(toy(), collate, 10))
    assert [i for b in batches for i in b.inputs["student"].tolist()] == list(range(23))
    assert [len(b) for b in batches] == [10, 10, 3]
