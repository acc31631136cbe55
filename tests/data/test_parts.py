"""Parts of batches: every sample once, in order, in all fields."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from decoct.data.base import Split
from decoct.data.given import LoaderSource
from decoct.data.parts import Padding, bounds, own_part, part, parts
from decoct.data.sources import Batches, Together
from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch

Pair = namedtuple("Pair", ["ids", "mask"])


@given(st.integers(0, 50), st.integers(1, 9))
def test_bounds_are_those_of_numpy(samples: int, count: int) -> None:
    wanted = np.array_split(np.arange(samples), count)
    assert [np.arange(*bounds(samples, rank, count)).tolist() for rank in range(count)] == [w.tolist() for w in wanted]


def whole(n: int) -> Batch:
    ids = torch.arange(3 * n).reshape(n, 3)
    inputs = {"student": Pair(ids, ids > 2), "teacher": {"a": ids, "b": [f"text {i}" for i in range(n)]}}
    numbers = np.arange(n, dtype=np.uint64)
    beside = Batch({"student": torch.arange(2 * n)})
    return Batch(
        inputs,
        {"kind": torch.arange(n), "boxes": [{"box": torch.tensor([i])} for i in range(n)]},
        torch.arange(n) % 2 == 0,
        numbers,
        numbers + np.uint64(7),
        {"held_out": beside},
        (Batch({"student": ids.clone()}, keys=numbers),),
        numbers * np.uint64(3),
        {"a teacher": "a ticket"},
    )


@given(st.integers(1, 9), st.integers(1, 4))
def test_parts_together_are_the_batch(n: int, count: int) -> None:
    batch = whole(n)
    mine = [own_part(batch, rank, count) for rank in range(count)]
    there = [each for each in mine if not isinstance(each, Padding)]
    assert len(there) == min(n, count)
    assert all(len(each) == 1 for each in mine if isinstance(each, Padding))

    def joined(look: Any) -> list[Any]:
        return [row for each in there for row in look(each)]

    for look in (
        lambda b: b.side("student").ids.tolist(),
        lambda b: b.side("student").mask.tolist(),
        lambda b: b.side("teacher")["b"],
        lambda b: b.target["kind"].tolist(),
        lambda b: [int(each["box"]) for each in b.target["boxes"]],
        lambda b: b.labelled.tolist(),
        lambda b: b.keys.tolist(),
        lambda b: b.view.tolist(),
        lambda b: b.seen.tolist(),
        lambda b: b.views[0].side("student").tolist(),
    ):
        assert joined(look) == list(look(batch))
    assert [
        row
        for each in mine
        if not isinstance(each.also["held_out"], Padding)
        for row in each.also["held_out"].side("student").tolist()
    ] == (list(range(2 * n)))
    for each in mine:
        assert each.tickets == {}
        assert each.side("student").ids is each.side("teacher")["a"]
        assert type(each.to("cpu")) is type(each)


def test_what_has_no_entry_for_each_sample_is_refused_and_numbers_stay() -> None:
    with pytest.raises(DataError, match=r"target of a batch has 2 entries and the batch 3 samples"):
        part(Batch({"student": torch.ones(3, 1)}, torch.ones(2)), 0, 1)
    found = part(Batch({"student": {"x": torch.ones(3, 1), "scale": torch.tensor(2.0), "flag": True}}, view=4), 1, 3)
    assert found.side("student")["scale"] == 2
    assert found.side("student")["flag"] is True
    assert found.view == 4


def collate(split: Split, indices: np.ndarray, *, seeds: Any = None, view: Any = 0) -> Batch:
    x = torch.from_numpy(split.columns["x"][indices])
    return Batch({"student": x}, None, None, split.keys[indices], view, seen=None if seeds is None else seeds)


def drawn(**settings: Any) -> Batches:
    split = Split({"x": np.arange(11.0)}, np.arange(11, dtype=np.uint64))
    return Batches(split, collate, batch_size=4, seed=3, augment=True, **settings)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_parts_of_drawn_batches_are_made_alone_and_have_the_same_views(prefetch: int) -> None:
    mine = [parts(drawn(prefetch=prefetch), rank, 3) for rank in range(3)]
    for batches in zip(drawn(), *mine, strict=True):
        wanted, *found = batches
        for name in ("keys", "seen"):
            rows = [row for each in found if not isinstance(each, Padding) for row in getattr(each, name)]
            assert rows == list(getattr(wanted, name))
    assert mine[0].state_dict() == mine[2].state_dict() == {"epoch": 1, "batch": 0}
    later = parts(drawn(), 1, 3)
    later.load_state_dict({"epoch": 0, "batch": 2})
    assert [each.keys.tolist() for each in later] == [[each.keys.tolist() for each in parts(drawn(), 1, 3)][2]]


def test_parts_of_other_sources_and_of_loaders() -> None:
    beside = [parts(Together(drawn(), {"held_out": drawn()}), rank, 2) for rank in range(2)]
    assert [each.length for each in beside] == [3, 3]
    for whole, *own in zip(Together(drawn(), {"held_out": drawn()}), *beside):
        assert [len(each) for each in own] == [2, len(whole) - 2]
        for name in ("keys", "seen"):
            for pick in (lambda batch: batch, lambda batch: batch.also["held_out"]):
                assert [x for each in own for x in getattr(pick(each), name)] == list(getattr(pick(whole), name))
    data = TensorDataset(torch.arange(6.0))
    plain = LoaderSource(DataLoader(data, batch_size=4), lambda item: Batch({"student": item[0]}))
    assert [each.side("student").tolist() for each in parts(plain, 1, 2)] == [[2.0, 3.0], [5.0]]
    sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    own = LoaderSource(DataLoader(data, batch_size=2, sampler=sampler), lambda item: Batch({"student": item[0]}))
    assert parts(own, 1, 2) is own
    assert parts(plain, 0, 1) is plain


def test_a_distributed_sampler_below_a_batch_sampler_has_divided_already() -> None:
    data, mine = TensorDataset(torch.arange(16)), []
    for rank in range(2):
        sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
        loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
        source = LoaderSource(loader, lambda item: Batch({"student": item[0]}))
        assert parts(source, rank, 2) is source
        mine.append([[x for each in source for x in each.side("student").tolist()] for _ in range(2)])
        with pytest.raises(RecipeError, match=rf"rank {rank} and num_replicas 2, and this is process 2 of 3"):
            parts(source, 2, 3)
    for epoch in range(2):
        assert sorted(mine[0][epoch] + mine[1][epoch]) == list(range(16))
    assert mine[0][0] != mine[0][1]  # the sampler hears which epoch it is


def test_a_loader_shows_the_first_batch_of_each_epoch_that_it_starts() -> None:
    seen: list[str] = []
    loader = DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=2, shuffle=True)
    source = parts(LoaderSource(loader, lambda item: Batch({"student": item[0]}, item[1])), 0, 2, seen.append)
    for _ in range(3):
        list(source)
    assert len(set(seen)) == len(seen) == 3
    later = LoaderSource(loader, lambda item: Batch({"student": item[0]}, item[1]))
    with pytest.warns(UserWarning, match="replayed"):
        later.load_state_dict({"epoch": 1, "batch": 2})
    again = parts(later, 0, 2, seen.append)
    assert len(list(again)) == 1
    list(again)
    assert seen[3:] == [seen[2]]
