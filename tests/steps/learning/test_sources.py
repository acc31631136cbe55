"""Further sources: which batches a term sees, what the student's step is, positions, keys, refusals."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.parts import padding
from decoct.data.sources import Batches
from decoct.errors import RecipeError
from decoct.models.base import Network
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.objectives.base import Objective, Probe, Sum, Term
from decoct.objectives.criterion import Criterion, needs_of
from decoct.objectives.cross_entropy import CrossEntropy
from decoct.objectives.kd import KD
from decoct.objectives.sources import sources_of
from decoct.outputs import DENSE, Batch, Needs, Outputs
from decoct.runner.checking import check, check_file
from decoct.spec import allow_plugin
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.learning.settings import Learning
from decoct.steps.learning.sources import at_source, read_by
from decoct.steps.train import Train
from decoct.tasks.image_classification import ImageClassification
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.optimizers import SGD
from tiny import PAIR, Watch, recipe

SMALL = MLP(hidden=(8,))
SHORT: dict[str, Any] = {"batch_size": 16, "log_every": 1, "optimizer": SGD(lr=0.5, momentum=0.0), "select": "last"}


class Apart(Objective):
    """The squared distance between the mean logits on the data and on the source `beside`."""

    use: ClassVar[str] = "apart"
    taught: ClassVar[bool] = False
    beside: str = "target"

    def needs(self) -> Mapping[str, Needs]:
        return {"student": Needs(), f"student@{self.beside}": Needs()}

    def build(self, probe: Probe) -> Term:
        assert probe.student.also[self.beside].logits is not None
        return ApartTerm(self.beside)


class ApartTerm(Term):
    splittable = False

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch, clock: Clock) -> Tensor:
        assert len(batch.also[self.beside]) == len(student.also[self.beside].logits)
        return (student.logits.mean(0) - student.also[self.beside].logits.mean(0)).square().sum()

    def items(self, batch: Batch) -> int:
        return len(batch)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=60).open()


@pytest.fixture(scope="module")
def target() -> Dataset:
    """Another 25 samples."""
    return Digits(limit=200).open().narrowed(np.arange(100, 125))


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification().resolve(data)


def context(folder: Path, data: Dataset, task: ImageClassification, **sources: Dataset) -> Context:
    where = {"folder": folder / "made", "work": folder / ".work"}
    return Context(task=task, data=data, name="made", seed=3, device="cpu", sources=sources, **where)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def teacher(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    where = context(tmp_path_factory.mktemp("teacher"), data, task)
    return Train(name="made", budget=Budget(steps=9), **SHORT).run({"model": MLP(hidden=(16,))}, where)


def by_hand(name: str, where: Context, teacher: Artifact, steps: int) -> dict[str, Tensor]:
    """The same few steps of plain descent, written out; the student starts as the step starts it."""
    task = where.task
    student = load_model(Train(name="begun", budget=Budget(steps=0), **SHORT).run({"model": SMALL}, where))
    taught_by = load_model(teacher)
    moved = at_source(where, "target")
    mine, theirs = (
        Batches(each.data.splits["train"], task.collate, batch_size=16, seed=each.seed, augment=True)
        for each in (where, moved)
    )

    def endless(source: Batches) -> Any:
        while True:
            yield from source

    def outputs(network: Network, batch: Batch) -> Tensor:
        return task.reading("student").forward(network, batch, DENSE).logits

    for batch, other, _ in zip(endless(mine), endless(theirs), range(steps)):
        loss = nn.functional.cross_entropy(outputs(student, batch), batch.target)
        if name == "supervised":
            loss = 0.7 * loss + 0.3 * nn.functional.cross_entropy(outputs(student, other), other.target)
        elif name == "taught":
            with torch.no_grad():
                wanted = (outputs(taught_by, other) / 2).softmax(-1)
            log_q = (outputs(student, other) / 2).log_softmax(-1)
            loss = 0.5 * loss + 0.5 * 4 * nn.functional.kl_div(log_q, wanted, reduction="batchmean")
        else:
            loss = loss + 0.1 * (outputs(student, batch).mean(0) - outputs(student, other).mean(0)).square().sum()
        grads = torch.autograd.grad(loss, list(student.module.parameters()))
        with torch.no_grad():
            for each, grad in zip(student.module.parameters(), grads):
                each -= 0.5 * grad
    return dict(student.module.state_dict())


OBJECTIVES: dict[str, Objective] = {
    "supervised": 0.7 * CrossEntropy() + 0.3 * CrossEntropy(name="beside", source="target"),
    "apart": CrossEntropy() + 0.1 * Apart(),
    "taught": 0.5 * CrossEntropy() + 0.5 * KD(temperature=2.0, source="target"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_the_one_written_out(
    name: str, data: Dataset, target: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    own, hand = (context(tmp_path / each, data, task, target=target) for each in ("own", "hand"))
    step: Learning = Train(name="made", budget=Budget(steps=6), objective=OBJECTIVES[name], **SHORT)
    inputs: dict[str, Any] = {"model": SMALL}
    if name == "taught":
        step = Distill(name="made", budget=Budget(steps=6), objective=OBJECTIVES[name], samples="labelled", **SHORT)
        inputs["teacher"] = teacher
    made = step.run(inputs, own)
    assert distance(weights(made.folder), by_hand(name, hand, teacher, 6)) < 1e-5


def test_a_window_cut_in_two_is_the_whole_one_though_items_differ(task: ImageClassification, data: Dataset) -> None:
    """Each term's share is of the items of its own batches: 5 and 3 here, 1 and 7 there."""
    split = data.splits["train"]
    torch.manual_seed(0)
    student = nn.Linear(64, 10).double()

    def predict(batch: Batch) -> Outputs:
        outputs, *also = (
            student(each.side("student").double().flatten(1) / 16) for each in (batch, *batch.also.values())
        )
        return Outputs(outputs, also={name: Outputs(each) for name, each in zip(batch.also, also)})

    def batch(main: range, other: range) -> Batch:
        beside = task.collate(split, np.array(other))
        made = task.collate(split, np.array(main))
        return Batch(made.inputs, made.target, also={"target": beside})

    objective = OBJECTIVES["supervised"]
    whole = batch(range(8), range(20, 28))
    probe = Probe(task, whole, predict(whole), {}, {})
    criterion = Criterion.build(objective, probe)
    total, _ = criterion(predict(whole), {}, whole, Clock())
    (expected,) = torch.autograd.grad(total, [student.weight])
    cuts = [batch(range(5), range(20, 21)), batch(range(5, 8), range(21, 28))]
    counts = [criterion.items(each) for each in cuts]
    assert counts == [{"cross_entropy": 5, "beside": 1}, {"cross_entropy": 3, "beside": 7}]
    found = torch.zeros_like(expected)
    for each, count in zip(cuts, counts):
        part, _ = criterion(predict(each), {}, each, Clock(), {name: n / 8 for name, n in count.items()})
        found += torch.autograd.grad(part, [student.weight])[0]
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_spare_counts_for_nothing_and_what_stands_beside_it_counts(task: ImageClassification, data: Dataset) -> None:
    split = data.splits["train"]
    main, other = (task.collate(split, np.arange(count)) for count in (1, 4))
    outputs = Outputs(torch.zeros(1, 10), also={"target": Outputs(torch.zeros(4, 10))})
    probe = Probe(task, replace(main, also={"target": other}), outputs, {}, {})
    criterion = Criterion.build(OBJECTIVES["supervised"], probe)
    assert criterion.items(replace(padding(main), also={"target": other})) == {"cross_entropy": 0, "beside": 4}
    assert criterion.items(replace(main, also={"target": padding(other)})) == {"cross_entropy": 1, "beside": 0}


def test_what_is_asked_of_whom() -> None:
    objective = CrossEntropy() + KD(source="a", teacher="one") + KD(name="second", teacher="two") + Apart(beside="b")
    needs = needs_of(objective, ("one", "two"), DENSE)
    assert {role: each.sources for role, each in needs.items()} == {
        "student": {"a", "b"},
        "one": {"a"},
        "two": frozenset(),
    }
    assert sources_of(objective) == ("a", "b")
    inherited = Sum(terms=(KD(), KD(name="x", source="own")), source="outer")
    assert sources_of(inherited) == ("outer", "own")
    assert [each.source for each in inherited.flat()] == ["outer", "own"]
    assert read_by(Train(name="x", objective=objective)) == ("a", "b")
    assert read_by(Train(name="x")) == ()


def test_a_term_that_names_no_source_is_as_it_was() -> None:
    assert "source" not in KD().plain()
    assert KD(source="a").plain()["source"] == "a"
    assert "sources" not in recipe(PAIR).plain()
    assert eval(repr(KD(source="a"))) == KD(source="a")


class Killed(Exception):
    """Raised where a kill would come."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_stopped_it_goes_on_with_the_next_batch_of_each(
    accumulate: int, data: Dataset, target: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    step = Train(
        name="made",
        budget=Budget(steps=9),
        objective=OBJECTIVES["supervised"],
        **{**SHORT, "batch_size": 10},
        accumulate=accumulate,
        checkpoint_seconds=1e-6,
    )
    whole = step.run({"model": SMALL}, context(tmp_path / "whole", data, task, target=target))
    where = context(tmp_path / "killed", data, task, target=target)

    def progress(done: float, total: float, text: str) -> None:
        if done >= 5:
            raise Killed

    with pytest.raises(Killed):
        step.run({"model": SMALL}, replace(where, progress=progress))
    assert list(where.work.glob("checkpoint-*"))
    again = step.run({"model": SMALL}, where)
    ours, theirs = weights(again.folder), weights(whole.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def sourced(**changes: Any) -> dict[str, Any]:
    """A teacher alone, and a student that also hears it on another source."""
    plain = copy.deepcopy(dict(PAIR))
    plain["sources"] = {"target": {"use": "digits", "limit": 40}}
    plain["steps"][0]["budget"] = plain["steps"][2]["budget"] = {"steps": 3}
    plain["steps"] = [plain["steps"][0], plain["steps"][2]]
    plain["steps"][1]["objective"] = [
        {"use": "cross_entropy", "weight": 0.5},
        {"use": "kd", "weight": 0.5, "source": "target"},
    ]
    return {**plain, **changes}


def test_a_key_holds_the_sources_that_the_step_reads(tmp_path: Path) -> None:
    def skipped(plain: Mapping[str, Any]) -> list[str]:
        watch = Watch()
        recipe(plain).run(tmp_path, watch=watch)
        return watch.steps("skipped")

    without = sourced(sources={})
    without["steps"][1] = {**without["steps"][1], "objective": [{"use": "kd"}]}
    assert skipped(without) == []
    unread = {**without, "sources": {"target": {"use": "digits", "limit": 30}}}
    assert skipped(unread) == ["teacher", "student"]
    assert skipped(sourced()) == ["teacher"]
    more = sourced()
    more["sources"]["other"] = {"use": "digits", "limit": 20}
    assert skipped(more) == ["teacher", "student"]
    more["sources"]["target"] = {"use": "digits", "limit": 50}
    assert skipped(more) == ["teacher"]
    more["sources"].pop("other")
    assert skipped(more) == ["teacher", "student"]


def test_check_runs_terms_on_their_source() -> None:
    found = check(recipe(sourced()))
    assert "cross_entropy, kd on a model of" in found[1].note


@pytest.mark.parametrize(
    ("at", "value", "line", "message"),
    [
        ("source", "targt", 21, "did you mean target?"),
        ("source", "zzzzzz", 21, "allowed: other, target"),
    ],
)
def test_a_wrong_name_is_shown_where_it_stands(at: str, value: str, line: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""version: 1
task: {{use: image_classification}}
data: {{use: digits, limit: 60}}
sources:
  target: {{use: digits, limit: 40}}
  other: {{use: digits, limit: 30}}
models:
  small: {{use: mlp, hidden: [8]}}
steps:
  - use: train
    name: teacher
    inputs: {{model: small}}
  - use: distill
    name: student
    inputs: {{model: small, teacher: teacher}}
    objective:
      - {{use: cross_entropy}}
      -
        use: kd
        weight: 0.5
        {at}: {value}
"""
    )
    with pytest.raises(RecipeError) as error:
        check_file(path)
    where = f"recipe.yaml:{line}:9: steps[1].objective[1].source: no source {value!r}; {message}"
    assert str(error.value).endswith(where)


def test_what_cannot_be_is_refused(data: Dataset, target: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no source 'target'; the recipe has none"):
        recipe(sourced(sources={}))
    plain = sourced()
    plain["steps"][1] = {"use": "ema_distill", "name": "ema", "inputs": {"model": "small"}}
    plain["steps"][1]["objective"] = [{"use": "cross_entropy", "source": "target"}]
    with pytest.raises(RecipeError, match=r"steps\.1\.objective|steps\[1\]\.objective: ema_distill draws no source"):
        recipe(plain)
    step = Train(name="made", budget=Budget(steps=1), objective=OBJECTIVES["supervised"], **SHORT)
    with pytest.raises(RecipeError, match="source is 'target', and there is none of this name; allowed: other"):
        step.run({"model": SMALL}, context(tmp_path, data, task, other=target))
    permuted = replace(target, classes=target.classes[::-1])
    with pytest.raises(RecipeError, match="beside: source 'target' has the classes 9, 8, 7, 6, 5 and 5 more"):
        step.run({"model": SMALL}, context(tmp_path, data, task, target=permuted))


def test_an_outside_objective_that_sees_two_sources_goes_through_a_recipe(tmp_path: Path) -> None:
    allow_plugin(Apart.__module__.partition(".")[0])
    plain = sourced()
    term = Apart(beside="nowhere")
    problems = recipe(plain).steps[1].replace(objective=CrossEntropy() + term)
    with pytest.raises(RecipeError, match="no source 'nowhere'; allowed: target"):
        recipe(plain).replace(steps=(recipe(plain).steps[0], problems))
