"""Rollouts: whole batches, own or data, what is said keyed by prompt and number, positions, parts of processes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from decoct.data.base import Split
from decoct.data.given import LoaderSource
from decoct.data.hashing import keyed, uniform
from decoct.data.parts import Padding, parts
from decoct.data.rollouts import Rollouts
from decoct.data.sources import Batches, Together
from decoct.errors import RecipeError
from decoct.outputs import Batch, content_of

SEED = 5


def collate(split: Split, indices: np.ndarray, *, seeds: np.ndarray | None = None, view: int = 0) -> Batch:
    x = torch.from_numpy(split.columns["x"][indices])
    return Batch({"student": x, "teacher": x}, x.clone(), None, split.keys[indices], view)


def prompts(count: int = 11, size: int = 4) -> Batches:
    split = Split({"x": np.arange(float(count))}, np.arange(count, dtype=np.uint64) * 3)
    return Batches(split, collate, batch_size=size, seed=3)


def policy(batch: Batch, seeds: np.ndarray) -> Batch:
    """1000 and the prompt, and a fraction from its seed."""
    outputs = 1000 + batch.side("student") + torch.from_numpy(uniform(seeds))
    return batch.regenerated({"student": outputs, "teacher": outputs})


def rollouts(share: float = 0.5, **settings: int) -> Rollouts:
    return Rollouts(prompts(**settings), policy, seed=SEED, share=share)


def endless(source: Rollouts) -> list[Batch]:
    def again():
        while True:
            yield from source

    return again()


def test_what_is_own_and_what_is_said_hang_on_seed_key_and_number() -> None:
    data = endless(prompts())
    own = 0
    for number, batch in enumerate(islice(endless(rollouts()), 40)):
        before = next(data)
        if uniform(keyed(SEED, "own", number))[0] < 0.5:
            own += 1
            drawn = uniform(keyed(SEED, "rollout", before.keys, number))
            wanted = 1000 + before.side("student") + torch.from_numpy(drawn)
            assert torch.equal(batch.side("teacher"), wanted)
            assert batch.keys.tolist() == content_of(wanted).tolist() != before.keys.tolist()
            assert (batch.target, batch.seen, dict(batch.tickets)) == (None, None, {})
        else:
            assert torch.equal(batch.side("student"), before.side("student"))
            assert batch.keys.tolist() == before.keys.tolist()
    assert 10 < own < 30


def test_all_or_none() -> None:
    assert all((each.side("student") >= 1000).all() for each in rollouts(1.0))
    assert not any((each.side("student") >= 1000).any() for each in rollouts(0.0))
    assert [rollouts(share).fixed for share in (0.0, 0.1, 1.0)] == [True, False, False]
    assert rollouts().length == 3


@given(consumed=st.integers(0, 9))
def test_resumes_at_any_batch(consumed: int) -> None:
    whole = [each.side("student").tolist() for each in islice(endless(rollouts()), 12)]
    first, second = rollouts(), rollouts()
    list(islice(endless(first), consumed))
    second.load_state_dict(first.state_dict())
    assert [each.side("student").tolist() for each in islice(endless(second), 12 - consumed)] == whole[consumed:]


def test_parts_of_several_processes_are_said_alone() -> None:
    asked: list[int] = []

    def counting(batch: Batch, seeds: np.ndarray) -> Batch:
        asked.append(len(batch))
        return policy(batch, seeds)

    whole = list(Rollouts(prompts(9), policy, seed=SEED))
    mine = [list(parts(Rollouts(prompts(9), counting, seed=SEED), rank, 2)) for rank in range(2)]
    assert asked == [2, 2, 1, 2, 2, 1]
    for batch, *own in zip(whole, *mine, strict=True):
        rows = [x for each in own if not isinstance(each, Padding) for x in each.side("student").tolist()]
        assert rows == batch.side("student").tolist()
    assert isinstance(mine[1][2], Padding)


def test_beside_others_it_makes_all_of_them_unfixed() -> None:
    assert Together(prompts(), {"x": prompts()}).fixed
    assert not Together(prompts(), {"x": rollouts()}).fixed
    assert not parts(Together(rollouts(), {"x": prompts()}), 0, 2).fixed


def test_prompts_without_keys_are_known_by_their_content() -> None:
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=3)
    plain = LoaderSource(loader, lambda item: Batch({"student": item[0], "teacher": item[0]}))
    first = next(iter(Rollouts(plain, policy, seed=SEED)))
    drawn = uniform(keyed(SEED, "rollout", content_of(torch.arange(3.0)), 0))
    assert torch.equal(first.side("student"), 1000 + torch.arange(3.0) + torch.from_numpy(drawn))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"share is 1\.5; allowed: 0"):
        rollouts(1.5)
    with pytest.raises(RecipeError, match="hang on what is trained themselves"):
        Rollouts(rollouts(), policy, seed=0)
    with pytest.raises(RecipeError, match="said 1 things to 4 prompts"):
        next(iter(Rollouts(prompts(), lambda batch, seeds: batch.take(slice(0, 1)), seed=0)))
