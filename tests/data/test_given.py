"""Loaders from Python: exact resume by replay, by the loader's own state, clear errors."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from decoct.data.given import GivenData, LoaderSource, describe_loaders
from decoct.errors import DataError
from decoct.outputs import Batch


class Noisy(Dataset):
    """Samples with noise from torch's, NumPy's and Python's global random states."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + 0.5 * torch.rand(()) + 0.25 * float(np.random.rand())


def to_batch(item: Any) -> Batch:
    value = item[0] if isinstance(item, list) else item
    return Batch({"student": value})


def loader(**options: Any) -> DataLoader:
    return DataLoader(Noisy(), batch_size=3, shuffle=True, **options)


def run(source: LoaderSource, count: int) -> list[list[float]]:
    """Batches of a loop that draws random numbers of its own between them."""
    found: list[list[float]] = []
    while len(found) < count:
        for batch in source:
            found.append([*batch.inputs["student"].tolist(), batch.view])
            torch.rand(3)
            if len(found) == count:
                break
    return found


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("consumed", [1, 3, 4, 6])
def test_replay_is_exact(workers: int, consumed: int) -> None:
    if workers and consumed != 3:
        pytest.skip("one position is enough for worker processes")
    seeded()
    whole = run(LoaderSource(loader(num_workers=workers), to_batch, seed=5), 9)
    seeded()
    first = LoaderSource(loader(num_workers=workers), to_batch, seed=5)
    run(first, consumed)
    state, random_state = first.state_dict(), (torch.get_rng_state(), np.random.get_state())
    second = LoaderSource(loader(num_workers=workers), to_batch, seed=5)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        second.load_state_dict(state)
    assert len(seen) == (state["batch"] > 0)
    torch.set_rng_state(random_state[0])
    np.random.set_state(random_state[1])
    assert run(second, 9 - consumed) == whole[consumed:]


def test_epochs_differ_and_global_state_is_left_alone() -> None:
    data = TensorDataset(torch.arange(32))
    source = LoaderSource(DataLoader(data, batch_size=8, shuffle=True), to_batch)
    before = torch.get_rng_state()
    epochs = [[i for b in source for i in b.inputs["student"].tolist()] for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert source.state_dict() == {"epoch": 2, "batch": 0}


class StatefulLoader:
    """Counts by itself."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < 4:
            self.at += 1
            yield torch.tensor([self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_a_stateful_loader_resumes_by_its_own_state() -> None:
    whole = run(LoaderSource(StatefulLoader(), to_batch), 9)
    first = LoaderSource(StatefulLoader(), to_batch)
    run(first, 6)
    second = LoaderSource(StatefulLoader(), to_batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(first.state_dict())
    assert run(second, 3) == whole[6:]


class Shuffling(StatefulLoader):
    """Draws the order of an epoch, of torch, NumPy and Python each, when it starts or is first asked for its state."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[float] = []

    def _order(self) -> list[float]:
        if self.at == 0 and not self.order:
            self.order = [float(torch.rand(())), np.random.rand(), random.random(), 0.0]
        return self.order

    def __iter__(self) -> Iterator[torch.Tensor]:
        self._order()
        while self.at < 4:
            self.at += 1
            yield torch.tensor([self.order[self.at - 1]])
        self.at, self.order = 0, []

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "order": list(self._order())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.order = state["at"], list(state["order"])


@pytest.mark.parametrize("asked", [False, True])
def test_a_stateful_loader_draws_the_same_in_processes_whose_random_states_differ(asked: bool) -> None:
    found = []
    for rank in range(2):
        seeded(rank)
        random.seed(rank)
        source = LoaderSource(Shuffling(), to_batch, seed=5)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        if asked:
            source.state_dict()
        found.append(run(source, 8))
        torch.manual_seed(rank)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert found[0] == found[1]
    assert found[0][:3] != found[0][4:7]


def test_a_loader_that_fails_leaves_the_random_states_as_they_were() -> None:
    def failing() -> Iterator[torch.Tensor]:
        np.random.rand(), random.random(), torch.rand(1)
        raise DataError("a damaged file")
        yield

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with pytest.raises(DataError, match="a damaged file"):
        next(iter(LoaderSource(failing(), to_batch)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_loader_with_a_generator_says_that_its_order_may_differ() -> None:
    source = LoaderSource(loader(generator=torch.Generator()), to_batch)
    with pytest.warns(UserWarning, match="generator of its own"):
        source.load_state_dict({"epoch": 0, "batch": 2})


def test_state_saved_after_the_last_batch_goes_on_with_the_next_epoch() -> None:
    first = LoaderSource([torch.tensor([1]), torch.tensor([2])], to_batch)
    iterator = iter(first)
    next(iterator), next(iterator)
    second = LoaderSource([torch.tensor([1]), torch.tensor([2])], to_batch)
    with pytest.warns(UserWarning, match="replayed up to batch 2"):
        second.load_state_dict(first.state_dict())
    assert [(b.inputs["student"].item(), b.view) for b in second] == [(1, 1), (2, 1)]


def test_a_used_up_generator_is_an_error() -> None:
    source = LoaderSource((torch.tensor([i]) for i in range(2)), to_batch)
    assert len(list(iter(source))) == 2
    with pytest.raises(DataError, match="gave no batch in epoch 1"):
        next(iter(source))
    assert source.length is None


def test_given_data_is_plain_and_tells_contents_apart() -> None:
    def described(shift: float) -> GivenData:
        return describe_loaders("train", {"train": DataLoader(TensorDataset(torch.arange(4.0) + shift), batch_size=2)})

    assert described(0) == described(0)
    assert described(0).fingerprint != described(1).fingerprint
    assert GivenData.parse(described(0).plain()) == described(0)
    assert described(0).open().fingerprint == described(0).fingerprint
