"""Where numbers come from that are not finite, and what is left out of training for it."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_toy import equal_states, timeless

from decoct.data.base import Source
from decoct.errors import Diverged
from decoct.outputs import Batch, Outputs
from decoct.training.budget import Budget
from decoct.training.clock import Clock
from decoct.training.fit import Options, State, fit
from decoct.training.updates import Descent

SAMPLES, SIZE = 24, 4


class Fixed(Source):
    """The same samples in every epoch, in an order of its own; `change` spoils inputs `[N, 3]` and targets `[N]`."""

    def __init__(self, change=lambda x, y: None) -> None:
        drawn = np.random.default_rng(0)
        self.x = torch.from_numpy(drawn.normal(size=(SAMPLES, 3))).float()
        self.y = torch.from_numpy(drawn.normal(size=SAMPLES)).float()
        change(self.x, self.y)
        self.keys = np.arange(100, 100 + SAMPLES, dtype=np.uint64)
        self.epoch = self.batch = 0

    @property
    def length(self) -> int:
        return SAMPLES // SIZE

    def rows(self, epoch: int, batch: int) -> np.ndarray:
        return np.random.default_rng([1, epoch]).permutation(SAMPLES)[batch * SIZE : (batch + 1) * SIZE]

    def __iter__(self) -> Iterator[Batch]:
        while self.batch < self.length:
            rows = self.rows(self.epoch, self.batch)
            self.batch += 1
            yield Batch({"student": self.x[rows]}, self.y[rows], None, self.keys[rows], self.epoch)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["batch"]


class Squared(nn.Module):
    """Mean squared distance to the target and to the teacher."""

    splittable = True

    def items(self, batch):
        return {"mse": len(batch)}

    def weights(self, clock):
        return {"mse": 1.0}

    def forward(self, student, teachers, batch, clock, shares=None):
        said = student.logits[:, 0]
        value = F.mse_loss(said, batch.target) + F.mse_loss(said, teachers["wise"].logits[:, 0])
        return value * (1.0 if shares is None else shares["mse"]), {"mse": value.detach()}


def case(source, *, teacher=lambda x, keys: x[:, :1], net=None, lr=0.05):
    torch.manual_seed(0)
    student = net or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)

    def wise(batch):
        with torch.no_grad():
            return Outputs(teacher(torch.nan_to_num(batch.side("student")), batch.keys))

    def forward(batch):
        return Outputs(student(batch.side("student")))

    return student, Descent(forward, {"wise": wise}, Squared(), optimizer), State(student=student, optimizer=optimizer)


def quietly(source, budget=None, work=None, options=None, **settings):
    budget = budget or Budget(epochs=5)
    student, update, state = case(source, **settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = fit(update, source, state, budget, work=work, options=options or Options(log_every=2))
    return student, history, [str(each.message) for each in told]


def spoil_input(x, y):
    x[7, 1] = float("nan")


def spoil_target(x, y):
    y[7] = float("inf")


def moody(x, keys):
    said = x[:, :1].clone()
    said[torch.from_numpy(np.asarray(keys) == 107)] = float("nan")
    return said


FAULTS = {
    "inputs": ({"change": spoil_input}, {}, "its inputs are not finite"),
    "targets": ({"change": spoil_target}, {}, "its target is not finite"),
    "teacher": ({}, {"teacher": moody}, "teacher wise answers with numbers that are not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", [True, False])
def test_one_bad_sample_is_left_out_once_and_for_all(tmp_path, fault, work):
    source, settings, reason = FAULTS[fault]
    student, history, told = quietly(Fixed(**source), work=tmp_path if work else None, **settings)
    key = f"{107:016x}"
    assert history.left_out == {key: reason}
    assert history.steps == 5 * SAMPLES // SIZE
    assert [each["why"] for each in history.records if each["kind"] == "left_out"] == [f"1 sample ({key}): {reason}"]
    assert sum(reason in each for each in told) == 1
    # The oracle: the same steps by hand, on batches that never held the sample.
    by_hand, update, _ = case(Fixed())
    good = Fixed()
    for epoch in range(5):
        for batch in range(good.length):
            rows = [row for row in good.rows(epoch, batch) if row != 7]
            update([Batch({"student": good.x[rows]}, good.y[rows], None, good.keys[rows])], Clock())
    assert equal_states(by_hand.state_dict(), student.state_dict())


def test_further_samples_with_bad_inputs_are_seen_before_they_do_harm():
    def change(x, y):
        x[[1, 7, 13, 20]] = float("nan")

    _, history, told = quietly(Fixed(change))
    assert sorted(history.left_out) == [f"{100 + row:016x}" for row in (1, 7, 13, 20)]
    assert sum("going back" in each for each in told) == 1


def test_kills_in_between_change_nothing(tmp_path):
    seldom = quietly(Fixed(spoil_input), work=tmp_path / "a", options=Options(checkpoint_seconds=1e9))
    often = quietly(Fixed(spoil_input), work=tmp_path / "b", options=Options(checkpoint_seconds=1e-9))
    quietly(Fixed(spoil_input), Budget(epochs=2), work=tmp_path / "c", options=Options(checkpoint_seconds=1e-9))
    resumed = quietly(Fixed(spoil_input), work=tmp_path / "c", options=Options(checkpoint_seconds=1e-9))
    for other in (often, resumed):
        assert equal_states(seldom[0].state_dict(), other[0].state_dict())
        assert seldom[1].left_out == other[1].left_out
    assert timeless(seldom[1].records) == timeless(often[1].records)


def test_a_teacher_that_answers_nothing_finite_ends_the_run_and_is_named():
    with pytest.raises(Diverged, match=r"3 times.*teacher wise answers with numbers that are not finite") as caught:
        quietly(Fixed(), teacher=lambda x, keys: x[:, :1] * float("nan"))
    assert "lr" not in str(caught.value)


def test_a_student_that_diverges_is_told_to_lower_its_lr():
    with pytest.raises(Diverged, match="it is the student's own: try a lower lr") as caught:
        quietly(Fixed(), lr=1e30, net=nn.Linear(3, 1))
    assert "inputs are not" not in str(caught.value)


class Filled(nn.Module):
    """Reads NaN as "missing"."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(torch.nan_to_num(x))


def test_missing_values_that_a_model_understands_are_not_blamed():
    _, history, _ = quietly(Fixed(spoil_input), net=Filled())
    assert history.left_out == {}
    with pytest.raises(Diverged, match="the student's own"):
        quietly(Fixed(spoil_input), net=Filled(), lr=1e30)


def test_samples_alone_in_their_batch_are_not_counted_as_batches():
    class Single(Fixed):
        @property
        def length(self):
            return SAMPLES

        def rows(self, epoch, batch):
            return np.random.default_rng([1, epoch]).permutation(SAMPLES)[batch : batch + 1]

    def change(x, y):
        x[[1, 7, 13, 20]] = float("inf")

    _, history, _ = quietly(Single(change), net=nn.Linear(3, 1))
    assert len(history.left_out) == 4
    assert history.steps == 5 * (SAMPLES - 4)


def test_finite_spikes_in_inputs_are_said_with_the_sample():
    def change(x, y):
        x[7, 1] = 1e20

    _, history, told = quietly(Fixed(change), Budget(epochs=1), lr=0.0)
    assert any(f"the inputs of sample {107:016x} reach 1e+20" in each for each in told)
    assert [each["keys"] for each in history.records if each.get("what") == "inputs"] == [[f"{107:016x}"]]


def test_finite_spikes_of_the_loss_are_said_and_logged_and_usual_losses_are_not():
    def change(x, y):
        y[7] = 1e12

    _, history, told = quietly(Fixed(change), Budget(epochs=2), lr=0.0)
    spikes = [each for each in history.records if each.get("what") == "loss"]
    assert len(spikes) == 2
    assert all(f"{107:016x}" in each["keys"] and each["value"] > 1e20 for each in spikes)
    assert any("the loss is" in each and "finite and far from the others" in each for each in told)
    _, history, told = quietly(Fixed(), Budget(epochs=2))
    assert told == []
    assert {each["kind"] for each in history.records} == {"train"}
