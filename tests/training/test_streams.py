"""Sources without length: budgets, the ends of epochs, validation, exact resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from training_toy import timeless

from decoct.data.given import LoaderSource
from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.fit import History, Options, State, fit
from decoct.training.updates import descend


class Stream(IterableDataset):
    """Five batches of four rows, or `known` to be so, or rows without end."""

    def __init__(self, rows: int | None = 20) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[torch.Tensor]:
        row = 0
        while self.rows is None or row < self.rows:
            yield torch.rand(2, dtype=torch.float64)
            row += 1


class Counted(Stream):
    """The same, which knows its length."""

    def __len__(self) -> int:
        assert self.rows is not None
        return self.rows


class Killed(Exception):
    """Raised where a kill would come."""


def run(
    data: IterableDataset, budget: Budget, work: Path | None = None, *, kill: int | None = None, **settings: Any
) -> tuple[History, torch.Tensor, list[int]]:
    """The history, the weights, and the steps at which it was validated."""
    torch.manual_seed(0)
    student = nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    source = LoaderSource(DataLoader(data, batch_size=4), lambda item: Batch({"student": item}), seed=4)

    def update(window: Sequence[Batch], clock: Clock) -> dict[str, torch.Tensor]:
        if clock.step == kill:
            raise Killed
        x = torch.cat([each.side("student") for each in window])
        return {**descend(student(x).square().mean(), optimizer), "epoch": torch.tensor(float(clock.epoch))}

    history = fit(
        update,
        source,
        State(student=student, optimizer=optimizer),
        budget,
        work=work,
        validate=lambda: {"norm": float(student.weight.norm())},
        options=Options(log_every=1, **settings),
    )
    validated = [each["step"] for each in history.records if each["kind"] == "validation"]
    return history, student.weight.detach(), validated


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_is_trained_on_as_a_source_of_known_length(accumulate: int) -> None:
    """Epochs that end are epochs, and windows at their ends are short, whether the end was known or not."""
    for budget in (Budget(steps=13), Budget(samples=50)):
        (known, weights, _), (free, same, _) = (
            run(data, budget, accumulate=accumulate, validate_every=3) for data in (Counted(), Stream())
        )
        assert torch.equal(weights, same)
        assert [each["step"] for each in known.records] == [each["step"] for each in free.records]
        assert [each.get("terms") for each in known.records] == [each.get("terms") for each in free.records]


def test_epochs_of_a_stream_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"budget is 1.5 epochs, and the data have no length .*allowed: steps, samp"):
        run(Stream(), Budget(epochs=1.5))
    assert run(Counted(), Budget(epochs=2))[0].steps == 10


@pytest.mark.parametrize(
    ("budget", "validated"),
    [
        (Budget(steps=10), [2, 4, 6, 8, 10]),
        (Budget(samples=40), [2, 4, 6, 8, 10]),
        (Budget(steps=3), [1, 2, 3]),
        (Budget(steps=12), [3, 6, 9, 12]),
    ],
)
def test_a_stream_without_end_is_validated_after_each_fifth_of_the_budget(budget: Budget, validated: list[int]) -> None:
    assert run(Stream(None), budget)[2] == validated
    assert run(Stream(None), budget, validate_every=4)[2] == [*range(4, validated[-1], 4), validated[-1]]


def test_a_stream_without_end_is_trained_on_for_seconds() -> None:
    history, _, validated = run(Stream(None), Budget(seconds=0.3))
    assert history.steps > 5
    assert len(validated) > 1


def test_also_at_the_ends_of_its_epochs() -> None:
    assert run(Stream(), Budget(steps=20))[2] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert run(Stream(), Budget(steps=12), validate_every=5)[2] == [5, 10, 12]


@pytest.mark.filterwarnings("ignore:.*keeps no state")
@pytest.mark.parametrize("rows", [20, None])
@pytest.mark.parametrize("budget", [Budget(steps=8), Budget(samples=60)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_at_any_step_it_ends_the_same(
    rows: int | None, budget: Budget, accumulate: int, tmp_path: Path
) -> None:
    settings = {"accumulate": accumulate, "checkpoint_seconds": 0.0}
    whole, weights, _ = run(Stream(rows), budget, **settings)
    for kill in range(1, whole.steps):
        work = tmp_path / str(kill)
        with pytest.raises(Killed):
            run(Stream(rows), budget, work, kill=kill, **settings)
        again, same, _ = run(Stream(rows), budget, work, **settings)
        assert again.resumed_from == kill
        assert torch.equal(weights, same)
        assert timeless(again.records) == timeless(whole.records)


def test_a_stream_without_batches_is_an_error() -> None:
    with pytest.raises(DataError, match="gave no batch in epoch 0"):
        run(Stream(0), Budget(steps=3))
