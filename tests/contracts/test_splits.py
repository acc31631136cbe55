"""The loss of a window: a batch against any split of it, for every objective that says it can be split."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoct.errors import RecipeError
from decoct.objectives._selection import Selection
from decoct.objectives.base import Objective, Probe
from decoct.objectives.criterion import Criterion
from decoct.objectives.refine.confidence import ConfidenceFilter
from decoct.objectives.refine.entropy import EntropyFilter
from decoct.outputs import Batch, Outputs
from decoct.training.clock import Clock
from decoct.training.updates import Descent
from objective_toys import (
    CLASSES,
    CLASSIFICATION,
    NUMBERS,
    REGRESSION,
    RUNNING,
    SIZE,
    batch_for,
    gradients,
    leaves,
    outputs,
    spec,
)
from position_toys import IGNORED, Tagging

PLACES = 4
BY_SAMPLE = {"focal_global"}
"""Supervised, and compares whole samples."""
SPLITS = st.permutations(range(SIZE)).flatmap(
    lambda order: st.sets(st.integers(1, SIZE - 1), max_size=3).map(lambda cuts: cut(order, sorted(cuts)))
)
FLAGS = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(torch.tensor)
EACH = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cut(order: Sequence[int], cuts: Sequence[int]) -> list[torch.Tensor]:
    """The samples in this order, cut at these places."""
    return [torch.tensor(order[a:b]) for a, b in zip([0, *cuts], [*cuts, SIZE])]


def grids(share: float) -> st.SearchStrategy[torch.Tensor]:
    """Bool `[SIZE, PLACES]`, True in about this share."""
    return st.integers(0, 99).map(
        lambda seed: torch.rand(SIZE, PLACES, generator=torch.Generator().manual_seed(seed)) < share
    )


def in_places(said: Outputs, seed: int, name: str) -> Outputs:
    """The same with logits of their own at each place."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        width = 1 if name in REGRESSION else CLASSES
        return torch.randn(SIZE, PLACES, width, generator=generator, dtype=torch.float64)

    heads = {key: Outputs(draw()) for key in said.heads}
    return replace(said, distribution=Outputs(draw()).distribution, heads=heads)


def window(
    criterion: Criterion, student: Outputs, teacher: Outputs, batch: Batch, pieces: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """The loss of each piece with its share of the window's items, as Windowed takes it."""
    parts = [batch.take(index) for index in pieces]
    counts = [{name: float(each) for name, each in criterion.items(part).items()} for part in parts]
    totals = {name: sum(each[name] for each in counts) for name in counts[0]}
    for index, part, count in zip(pieces, parts, counts):
        shares = {name: count[name] / total if total else 0.0 for name, total in totals.items()}
        sides = student.take(index, SIZE), {"teacher": teacher.take(index, SIZE)}
        yield criterion(*sides, part, Clock(step=300, epoch=3), shares)[0]


def agree(criterion: Criterion, student: Outputs, teacher: Outputs, batch: Batch, pieces: Any, inputs: Any) -> None:
    """Value and gradients of the whole batch are those of the pieces together."""
    whole, _ = criterion(student, {"teacher": teacher}, batch, Clock(step=300, epoch=3))
    split = torch.stack(list(window(criterion, student, teacher, batch, pieces))).sum()
    torch.testing.assert_close(whole, split, rtol=1e-10, atol=1e-12)
    for a, b in zip(gradients(whole, inputs), gradients(split, inputs)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def built(objective: Objective, task: Any, student: Outputs, teacher: Outputs, batch: Batch) -> Criterion:
    torch.manual_seed(0)
    return Criterion.build(objective, Probe(task, batch, student, {"teacher": teacher}, {})).double()


def ons(name: str) -> tuple[str, ...]:
    return ("all", "labelled") if spec(name).supervised else ("all", "labelled", "unlabelled")


WAYS = [(name, on) for name in RUNNING for on in ons(name)]


RELATING = {
    "afd",
    "batch_correlation",
    "channel_correlation",
    "class_correlation",
    "correlation_congruence",
    "crd",
    "dist",
    "ofd",
    "pearson_feature",
    "pkt",
    "review_kd",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
}
"""They relate samples to each other, or batch norm in their networks does."""


@pytest.mark.parametrize("name", RUNNING)
def test_what_cannot_be_split_says_so(name: str) -> None:
    said, batch = outputs(7, name), batch_for(name)
    task = NUMBERS if name in REGRESSION else CLASSIFICATION
    assert built(spec(name), task, said, said, batch).splittable == (name not in RELATING)


def tagging(name: str) -> Tagging:
    """A task of the kind of answer that a term is for."""
    return Tagging(numbers=spec(name).suits() == "numbers")


@pytest.mark.parametrize(("name", "on"), WAYS)
def test_any_split_of_samples_gives_the_loss_of_the_batch(name: str, on: str) -> None:
    @EACH
    @given(SPLITS, FLAGS)
    def holds(pieces: list[torch.Tensor], labelled: torch.Tensor) -> None:
        student, inputs = leaves(outputs(7, name, torch.float64))
        teacher, batch = outputs(8, name, torch.float64), batch_for(name, labelled)
        task = NUMBERS if name in REGRESSION else CLASSIFICATION
        criterion = built(spec(name, on=on), task, student, teacher, batch)
        if criterion.splittable:
            agree(criterion, student, teacher, batch, pieces, [*inputs, *criterion.parameters()])

    holds()


@pytest.mark.parametrize(("name", "on"), WAYS)
def test_any_split_gives_the_loss_of_the_batch_where_positions_count(name: str, on: str) -> None:
    @EACH
    @given(SPLITS, FLAGS, grids(0.7), grids(0.5))
    def holds(pieces: list[torch.Tensor], labelled: torch.Tensor, there: torch.Tensor, known: torch.Tensor) -> None:
        student, inputs = leaves(in_places(outputs(7, name, torch.float64), 1, name))
        teacher, batch = in_places(outputs(8, name, torch.float64), 2, name), batch_for(name)
        target = torch.randint(CLASSES, (SIZE, PLACES), generator=torch.Generator().manual_seed(3))
        target = torch.where(known, target, IGNORED)
        if name in REGRESSION:
            target = torch.where(known, target.double(), torch.nan).unsqueeze(-1)
        if name not in BY_SAMPLE:
            batch = replace(batch, target=target)
        batch = replace(batch, inputs={"student": there.long(), "teacher": there.flip(1).long()}, labelled=labelled)
        criterion = built(spec(name, on=on), tagging(name), student, teacher, batch)
        if criterion.splittable:
            agree(criterion, student, teacher, batch, pieces, [*inputs, *criterion.parameters()])

    if name not in BY_SAMPLE:
        holds()


@pytest.mark.parametrize("name", sorted(BY_SAMPLE))
def test_one_target_of_each_sample_is_not_read_off_positions(name: str) -> None:
    said, batch = outputs(7, name), batch_for(name)
    term = built(spec(name), CLASSIFICATION, said, said, batch).terms[0]
    there = Batch({"student": torch.ones(SIZE, PLACES)}, torch.zeros(SIZE, PLACES, dtype=torch.long))
    with pytest.raises(RecipeError, match="it reads one target of each sample, and task 'tagging' has one at each"):
        Selection(spec(name), term, tagging(name)).kept(there)


REFINED = [
    spec("kd", refine=(ConfidenceFilter(at_least=0.4),)),
    spec("kd", refine=(EntropyFilter(at_most=0.9, weigh=True),)),
    spec("hidden_mse", refine=(ConfidenceFilter(at_least=0.4),)),
    spec("hint", refine=(EntropyFilter(at_most=0.9),)),
]


@pytest.mark.parametrize("number", range(len(REFINED)))
@pytest.mark.parametrize("on", ["all", "labelled", "unlabelled"])
@pytest.mark.parametrize("positions", [False, True])
def test_any_split_of_a_refined_term_gives_the_loss_of_the_batch(number: int, on: str, positions: bool) -> None:
    objective = REFINED[number].replace(on=on)
    by_position = positions and objective.use == "kd"

    @EACH
    @given(SPLITS, FLAGS, grids(0.7), grids(0.5))
    def holds(pieces: list[torch.Tensor], labelled: torch.Tensor, there: torch.Tensor, known: torch.Tensor) -> None:
        said = [outputs(seed, "kd", torch.float64) for seed in (7, 8)]
        said = [in_places(each, seed, "kd") for seed, each in enumerate(said)] if by_position else said
        student, inputs = leaves(said[0])
        target = torch.where(known, 1, IGNORED) if by_position else torch.where(labelled, 1, IGNORED)
        mask = torch.arange(5) < torch.tensor([5, 1, 2, 4, 5, 3])[:, None]
        read = there.long() if by_position else {"input_ids": mask.long(), "attention_mask": mask.long()}
        batch = Batch({"student": read}, target, labelled)
        task = Tagging() if by_position else CLASSIFICATION
        criterion = built(objective, task, student, said[1], batch)
        if criterion.splittable:
            agree(criterion, student, said[1], batch, pieces, [*inputs, *criterion.parameters()])

    holds()


def test_tokens_that_count_are_those_of_the_term() -> None:
    """One window against the same cut in two, through the update: KD counts tokens, cross-entropy labelled tokens."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 11, (13, 9), generator=random) * (
        torch.arange(9) < torch.randint(1, 10, (13, 1), generator=random)
    )
    labelled = torch.rand(13, 9, generator=random) < torch.linspace(0.1, 0.9, 13)[:, None]
    target = torch.where((ids > 0) & labelled, torch.randint(CLASSES, (13, 9), generator=random), IGNORED)
    weight = torch.randn(2, 11, CLASSES, generator=random, dtype=torch.float64)
    teacher = {"teacher": lambda batch: Outputs(weight[1][batch.side("student")])}
    found = []
    for cuts in ([13], [7, 6], [1, 4, 8]):
        own = torch.nn.Parameter(weight[0].clone())
        say = lambda batch: Outputs(own[batch.side("student")])  # noqa: B023, E731
        window = [Batch({"student": a}, b) for a, b in zip(ids.split(cuts), target.split(cuts))]
        probe = Probe(Tagging(), window[0], say(window[0]), {"teacher": teacher["teacher"](window[0])}, {})
        criterion = Criterion.build(spec("kd") + spec("cross_entropy") + spec("task_loss"), probe)
        logged = Descent(say, teacher, criterion, torch.optim.SGD([own], lr=1.0))(window, Clock())
        found.append((own.detach(), {name: each.item() for name, each in logged.items()}))
    for weights, logged in found[1:]:
        torch.testing.assert_close(weights, found[0][0], rtol=1e-12, atol=1e-14)
        assert logged == pytest.approx(found[0][1], rel=1e-12)
