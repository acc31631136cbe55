"""Learned terms in training: they move, are in the checkpoint, and a run that was stopped ends as one that was not."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

import decoct as dc
from decoct.data.base import Source
from decoct.models.given import plain_network
from decoct.objectives.criterion import needs_of
from decoct.outputs import DENSE, Batch, Needs
from decoct.steps.learning.building import build_criterion
from decoct.tasks.image_classification import ImageClassification
from decoct.teachers.frozen import Frozen
from decoct.training.fit import Options, State, fit
from decoct.training.updates import Descent

TASK = ImageClassification(raw=True, classes=tuple("abc"))
PAIR = {"0": "0"}
OBJECTIVE = (
    dc.CrossEntropy(weight=0.5)
    + dc.Hint(layers=PAIR)
    + dc.CRD(layers={"4@input": "4@input"}, bank=16, dim=4)
    + dc.MGD(layers=PAIR)
    + dc.FactorTranslator(layers=PAIR)
    + dc.ReviewKD(layers={"0": "0", "2": "2"}, width=3)
    + dc.AFD(student_layers=("0", "2"), teacher_layers=("0",), dim=4)
    + dc.FeatureDiscriminator(layers=PAIR, hidden=4)
    + dc.VID(layers=PAIR)
)


class Repeated(Source):
    """Four batches an epoch, the same each time, with keys."""

    def __init__(self) -> None:
        self.epoch = self.batch = 0

    @property
    def length(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Batch]:
        while self.batch < 4:
            generator = torch.Generator().manual_seed(self.batch)
            x = torch.randn(6, 2, 8, 8, generator=generator)
            keys = torch.randint(1 << 62, (6,), generator=generator).numpy().view("uint64")
            self.batch += 1
            yield Batch({"student": x, "teacher": x}, torch.randint(3, (6,), generator=generator), keys=keys)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]


def net(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2 * width, 3),
    )


def trained(steps: int, work, seed: int = 5) -> tuple[nn.Module, nn.Module]:
    student, teacher, source = net(3, 1), net(4, 2), Repeated()
    needs = needs_of(OBJECTIVE, ["teacher"], DENSE)
    with Frozen().open(teacher, TASK.reading("teacher"), needs["teacher"]) as predict:
        network = plain_network(student, "image")
        forward = lambda batch: TASK.forward(network, batch, needs["student"], "student")  # noqa: E731
        torch.manual_seed(seed)
        criterion = build_criterion(
            OBJECTIVE, TASK, next(iter(Repeated())), forward, {"teacher": predict}, {"student": student}
        )
        optimizer = torch.optim.Adam([*student.parameters(), *criterion.parameters()], lr=0.01)
        update = Descent(forward, {"teacher": predict}, criterion, optimizer)
        state = State(student=student, optimizer=optimizer, criterion=criterion)
        fit(update, source, state, dc.Budget(steps=steps), work=work, options=Options(log_every=2))
    return student, criterion


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    student, criterion = trained(11, tmp_path / "whole")
    trained(5, tmp_path / "parts")
    again, resumed = trained(11, tmp_path / "parts", seed=99)
    for a, b in ((student, again), (criterion, resumed)):
        theirs = b.state_dict()
        for name, value in a.state_dict().items():
            assert torch.equal(value, theirs[name]), name


def test_what_terms_learn_moves_and_is_no_part_of_the_student(tmp_path):
    student, criterion = trained(3, tmp_path / "a")
    _, start = trained(1, tmp_path / "b")
    moved = dict(start.named_parameters())
    assert len(moved) > 40
    assert all(not torch.equal(each, moved[name]) for name, each in criterion.named_parameters())
    assert set(student.state_dict()) == set(net(3, 1).state_dict())
    assert not TASK.forward(plain_network(student, "image"), next(iter(Repeated())), Needs(), "student").features
