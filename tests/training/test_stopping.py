"""Early ends: when a rule and when somebody who watches ends training, by hand-written oracles, through kills too."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fit import Case
from training_toy import equal_states, timeless

from decoct.errors import RecipeError
from decoct.training.budget import Budget
from decoct.training.stopping import Stop, Stopping, Watch


def ends_at(scores, patience, min_delta, sign):
    """The index of the validation that ends training, written the slow way round: over all prefixes."""
    for end in range(1, len(scores) + 1):
        best = [0]
        for i in range(1, end):
            if sign * (scores[i] - scores[best[-1]]) > min_delta:
                best.append(i)
        if end - 1 - best[-1] >= patience:
            return end - 1
    return None


@given(
    st.lists(st.integers(0, 6).map(lambda n: n / 8), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.125, 0.25]),
    st.sampled_from(["max", "min"]),
)
def test_patience_counts_validations_without_gain(scores, patience, min_delta, mode):
    stopping = Stopping(Stop(patience=patience, min_delta=min_delta), "m", mode)
    told = [stopping.offer(score, step) for step, score in enumerate(scores)]
    first = next((i for i, why in enumerate(told) if why), None)
    assert first == ends_at(scores, patience, min_delta, 1 if mode == "max" else -1)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(-2, 2), st.sampled_from(["max", "min"]))
def test_a_value_that_is_enough_ends_at_once(scores, at, mode):
    stopping = Stopping(Stop(at=at), "m", mode)
    told = [bool(stopping.offer(score, 0)) for score in scores]
    assert told == [score >= at if mode == "max" else score <= at for score in scores]


def test_what_is_no_number_gains_nothing():
    stopping = Stopping(Stop(patience=2), "m", "max")
    assert stopping.offer(math.nan, 0) == ""
    assert stopping.offer(math.nan, 1) == "m gained nothing in 2 validations"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 11))
def test_it_goes_on_from_its_state(scores, cut):
    whole, first, second = (Stopping(Stop(patience=2), "m", "max") for _ in range(3))
    expected = [whole.offer(score, i) for i, score in enumerate(scores)]
    told = [first.offer(score, i) for i, score in enumerate(scores[:cut])]
    second.load_state_dict(first.state_dict())
    told += [second.offer(score, i) for i, score in enumerate(scores[cut:], cut)]
    assert told == expected


@pytest.mark.parametrize("wrong", [{}, {"min_delta": 0.1}, {"at": 1.0, "min_delta": 0.1}, {"patience": 0}])
def test_a_rule_says_when(wrong):
    with pytest.raises((RecipeError, ValueError), match=r"patience|min_delta"):
        Stop(**wrong)


# In a training.


def falling(case, scores):
    """Validation that gives these scores in turn."""
    given = itertools.chain(scores, itertools.repeat(scores[-1]))
    case.validate = lambda: {"score": next(given)}
    return case


def test_training_ends_and_keeps_the_best(tmp_path):
    case = falling(Case(), [0.1, 0.5, 0.4, 0.3, 0.9])
    stop = Stopping(Stop(patience=2), "score", "max")
    history = case.fit(Budget(epochs=10), tmp_path, stop=stop, select=("score", "max"))
    assert (history.steps, history.best_step, history.best) == (28, 14, {"score": 0.5})
    assert history.stopped == "score gained nothing in 2 validations; best 0.5, at step 14"
    told = [each for each in history.records if each["kind"] == "stop"]
    assert told == [{"kind": "stop", "step": 28, "epoch": 4, "why": history.stopped}]
    plain = Case()
    plain.fit(Budget(epochs=2), validate=False)
    assert equal_states(case.student.state_dict(), plain.student.state_dict())


def test_without_a_reason_it_is_the_same_training(tmp_path):
    watched, plain = Case(dropout=0.3), Case(dropout=0.3)
    stop = Stopping(Stop(patience=100), "accuracy", "max")
    seen = Seen(draws=True)
    one = watched.fit(Budget(epochs=3), stop=stop, watch=seen, select=("accuracy", "max"))
    two = plain.fit(Budget(epochs=3), select=("accuracy", "max"))
    assert equal_states(watched.student.state_dict(), plain.student.state_dict())
    assert timeless(one.records) == timeless(two.records) == timeless(seen.records)
    assert (one.stopped, two.stopped) == ("", "")


class Seen(Watch):
    """Keeps records; draws random numbers, if asked; wants an end at the n-th."""

    def __init__(self, end=None, draws=False):
        self.records, self.end, self.draws, self.count = [], end, draws, 0

    def __call__(self, record):
        self.count += 1
        self.records.append(record)
        if self.draws:
            torch.rand(3), np.random.rand(2)
        return "seen enough" if self.count == self.end else ""

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("end", range(1, 8))
def test_who_watches_ends_training_at_any_record(end, tmp_path):
    case, seen = Case(), Seen(end)
    history = case.fit(Budget(epochs=10), tmp_path, watch=seen, log_every=3)
    assert history.stopped == "seen enough"
    kinds = [each["kind"] for each in history.records]
    assert kinds.count("stop") == 1
    assert kinds.index("stop") == end
    last = max(each["step"] for each in history.records if each["kind"] == "validation")
    assert last == history.steps  # what is kept was scored
    plain = Case()
    plain.fit(Budget(steps=history.steps), validate=False)
    assert equal_states(case.student.state_dict(), plain.student.state_dict())


def test_a_killed_training_stops_where_it_would_have(tmp_path):
    """The state of rule and watcher is that of the checkpoint; also a run that was killed after its stop."""

    def rule():
        return Stopping(Stop(patience=2), "accuracy", "max")

    whole, seen = Case(), Seen()
    expected = whole.fit(Budget(epochs=12), tmp_path / "whole", stop=rule(), watch=seen, log_every=2)
    assert expected.stopped
    for count in range(1, len([r for r in expected.records if r["kind"] == "validation"]) + 1):
        work = tmp_path / str(count)

        def fault(case, count=count):
            if case.calls == count:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Case(fault=fault).fit(Budget(epochs=12), work, stop=rule(), watch=Seen(), log_every=2)
        after, again = Case(), Seen()
        history = after.fit(Budget(epochs=12), work, stop=rule(), watch=again, log_every=2)
        assert timeless(history.records) == timeless(expected.records)
        assert equal_states(after.student.state_dict(), whole.student.state_dict())
        assert again.count == seen.count
    finished = Case().fit(Budget(epochs=12), tmp_path / "whole", stop=rule(), watch=Seen(), log_every=2)
    assert (finished.stopped, finished.steps) == (expected.stopped, expected.steps)


def test_a_score_that_is_not_there_is_named():
    with pytest.raises(RecipeError, match="validation gives no score 'acuracy'; did you mean accuracy"):
        Case().fit(Budget(epochs=1), stop=Stopping(Stop(patience=1), "acuracy", "max"))


def test_progress_shows_the_metric_beside_the_loss():
    told = []
    case = falling(Case(), [0.25])
    case.fit(Budget(epochs=2), progress=lambda done, total, text: told.append(text), metric="score", log_every=1)
    assert any("loss" in text and text.endswith(", validation score 0.25") for text in told)
