import json
import os
import signal
import threading
import time
import warnings
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from torch import nn
from training_toy import HandCriterion, Toy, equal_states, network, predictor, timeless

from decoct.errors import DataError, Diverged, RecipeError
from decoct.training.budget import Budget
from decoct.training.fit import Guard, Interrupted, Options, State, fit
from decoct.training.log import Means
from decoct.training.schedules import Cosine, Linear
from decoct.training.updates import Descent, descend


class Case:
    """One small distillation, ready to be fitted."""

    def __init__(self, source=None, dropout=0.0, lr=0.05, weight=0.7, fault=None, steps_seen=None):
        self.student, teacher = network(0, dropout=dropout), network(1)
        self.teacher = teacher
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9)
        self.criterion = HandCriterion(weight)
        self.source = source or Toy()
        self.fault = fault
        self.calls = 0
        forward = predictor(self.student)

        def teacher_outputs(batch):
            with torch.no_grad():
                return predictor(teacher)(batch)

        self.update = Descent(forward, {"teacher": teacher_outputs}, self.criterion, self.optimizer, lr=lr)
        torch.manual_seed(3)

    def validate(self):
        self.calls += 1
        if self.fault is not None:
            self.fault(self)
        batch = Toy(sizes=(50,)).make(99, 0)
        with torch.no_grad():
            logits = self.student(batch.side("student"))
        return {
            "loss": nn.functional.cross_entropy(logits, batch.target).item(),
            "accuracy": (logits.argmax(-1) == batch.target).double().mean().item(),
        }

    def fit(self, budget, work=None, validate=True, **options):
        state = State(student=self.student, optimizer=self.optimizer, criterion=self.criterion)
        validate = self.validate if validate else None
        torch.manual_seed(3)
        return fit(self.update, self.source, state, budget, work=work, validate=validate, options=Options(**options))


def test_log_holds_means_since_the_last_record(tmp_path):
    fine = Case(weight=Linear(1, 0), lr=Cosine(0.1))
    every = fine.fit(Budget(epochs=3), log_every=1).records
    coarse = Case(weight=Linear(1, 0), lr=Cosine(0.1)).fit(Budget(epochs=3), work=tmp_path, log_every=4).records
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == coarse
    steps = {r["step"]: r for r in every if r["kind"] == "train"}
    trained = [r for r in coarse if r["kind"] == "train"]
    assert [r["step"] for r in trained] == [4, 8, 12, 16, 20, 21]
    for record in trained:
        begin = (record["step"] - 1) // 4 * 4 + 1
        part = [steps[s] for s in range(begin, record["step"] + 1)]
        assert record["loss"] == sum(r["loss"] for r in part) / len(part)
        assert record["terms"].keys() == {"kd", "cross_entropy"}
        for name, mean in record["terms"].items():
            assert mean == sum(r["terms"][name] for r in part) / len(part)
        progress = (record["step"] - 1) / 21
        assert record["weights"] == {"kd": pytest.approx(1 - progress), "cross_entropy": 0.5}
        assert record["lr"] == pytest.approx(Cosine(0.1).at(fine_clock(progress)))
    scored = [r for r in coarse if r["kind"] == "validation"]
    assert [(r["step"], r["epoch"]) for r in scored] == [(7, 1), (14, 2), (21, 3)]
    assert scored[0]["scores"].keys() == {"loss", "accuracy"}


def fine_clock(progress):
    from decoct.training.clock import Clock

    return Clock(progress=progress)


def test_the_best_weights_are_in_the_student_at_the_end():
    kept = {}

    def fault(case):
        kept[case.calls] = {k: v.clone() for k, v in case.student.state_dict().items()}

    for mode, choose in (("max", max), ("min", min)):
        case = Case(fault=fault, lr=1.0)
        history = case.fit(Budget(epochs=6), select=("loss", mode))
        scores = [r["scores"]["loss"] for r in history.records if r["kind"] == "validation"]
        at = scores.index(choose(scores))
        assert history.best["loss"] == scores[at]
        assert history.best_step == 7 * (at + 1)
        assert equal_states(dict(case.student.state_dict()), kept[at + 1])


def test_a_score_that_is_not_a_number_is_never_best():
    case = Case()
    values = iter([float("nan"), 0.3, float("nan")])
    state = State(student=case.student, optimizer=case.optimizer)
    history = fit(
        case.update,
        case.source,
        state,
        Budget(epochs=3),
        validate=lambda: {"x": next(values)},
        options=Options(select=("x", "max")),
    )
    assert (history.best, history.best_step) == ({"x": 0.3}, 14)
    assert history.records[0]["scores"] == {"x": None}


def test_student_is_in_train_mode_after_validation_and_frozen_parts_stay_in_eval():
    modes = []

    def fault(case):
        modes.append((case.student.training, case.student[2].training, torch.is_grad_enabled()))
        case.student.eval()

    case = Case(dropout=0.5, fault=fault)
    case.student.eval()
    case.fit(Budget(epochs=2))
    assert modes == [(False, False, False)] * 2
    assert case.student.training
    assert case.student[2].training
    case = Case(dropout=0.5)
    case.student[2].eval()
    case.fit(Budget(epochs=1))
    assert case.student.training
    assert not case.student[2].training


def test_validation_changes_no_number():
    def draws(case):
        torch.rand(7)

    a, b = Case(dropout=0.3, fault=draws), Case(dropout=0.3)
    a.fit(Budget(epochs=3), validate_every=2)
    b.fit(Budget(epochs=3), validate=False)
    assert a.calls > 3
    assert equal_states(a.student.state_dict(), b.student.state_dict())


def test_saving_changes_no_number(tmp_path):
    a, b = Case(dropout=0.3), Case(dropout=0.3)
    one = a.fit(Budget(epochs=3), work=tmp_path, checkpoint_seconds=0.0)
    two = b.fit(Budget(epochs=3), guard=None)
    assert timeless(one.records) == timeless(two.records)
    assert equal_states(a.student.state_dict(), b.student.state_dict())


@pytest.mark.parametrize(
    "budget, accumulate, steps",
    [
        (Budget(steps=10), 1, 10),
        (Budget(steps=10), 3, 10),
        (Budget(epochs=2), 1, 14),
        (Budget(epochs=2), 3, 6),
        (Budget(epochs=0.5), 1, 4),
        (Budget(samples=100), 1, 13),
        (Budget(samples=100), 2, 7),
        (Budget(steps=0), 1, 0),
    ],
)
def test_budget_units(budget, accumulate, steps):
    case = Case()
    history = case.fit(budget, accumulate=accumulate, log_every=1)
    assert history.steps == steps
    assert history.records[-1]["kind"] == "validation"
    assert history.records[-1]["step"] == steps


def test_budget_in_seconds_ends():
    history = Case().fit(Budget(seconds=0.2), log_every=1)
    assert history.steps > 0
    last = [r for r in history.records if r["kind"] == "train"][-1]
    assert last["time"] > 0.1


def test_validations_inside_an_epoch():
    def steps(case, budget, **options):
        return [r["step"] for r in case.fit(budget, **options).records if r["kind"] == "validation"]

    assert steps(Case(Toy((4,) * 40)), Budget(steps=10)) == [2, 4, 6, 8, 10]
    assert steps(Case(), Budget(steps=10), validate_every=4) == [4, 7, 8, 10]
    assert steps(Case(), Budget(steps=10)) == [7, 10]


@pytest.mark.parametrize("stop", range(1, 21, 3))
def test_a_run_that_fails_anywhere_goes_on_with_equal_numbers(tmp_path, stop):
    """Also in the middle of an epoch and with a partly filled mean."""

    class Stop(Exception):
        pass

    whole = Case(dropout=0.3, weight=Linear(1, 0))
    expected = whole.fit(Budget(epochs=3), work=tmp_path / "whole", select=("loss", "min"), log_every=4)
    first = Case(dropout=0.3, weight=Linear(1, 0))
    update, count = first.update, [0]

    def failing(*args):
        count[0] += 1
        if count[0] > stop:
            raise Stop
        return Descent.__call__(update, *args)

    state = State(student=first.student, optimizer=first.optimizer, criterion=first.criterion)
    first.update = type("Failing", (Descent,), {"__call__": lambda self, *args: failing(*args)})(
        update.forward, update.teachers, update.criterion, update.optimizer, lr=update.lr
    )
    options = Options(select=("loss", "min"), log_every=4, checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        fit(
            first.update,
            first.source,
            state,
            Budget(epochs=3),
            work=tmp_path / "cut",
            validate=first.validate,
            options=options,
        )
    second = Case(dropout=0.3, weight=Linear(1, 0))
    torch.manual_seed(77)
    history = second.fit(Budget(epochs=3), work=tmp_path / "cut", select=("loss", "min"), log_every=4)
    assert history.resumed_from == stop
    assert timeless(history.records) == timeless(expected.records)
    assert equal_states(second.student.state_dict(), whole.student.state_dict())
    assert equal_states(second.optimizer.state_dict(), whole.optimizer.state_dict())
    assert history.best == expected.best


def test_a_finished_run_is_not_trained_again(tmp_path):
    Case().fit(Budget(epochs=2), work=tmp_path, select=("loss", "min"))
    again = Case()
    before = (tmp_path / "log.jsonl").read_bytes()
    history = again.fit(Budget(epochs=2), work=tmp_path, select=("loss", "min"))
    assert (history.resumed_from, history.steps, again.calls) == (14, 14, 0)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_damaged_checkpoints_are_left_out_with_a_warning(tmp_path):
    whole = Case().fit(Budget(epochs=3))
    Case().fit(Budget(epochs=3), work=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-14", "checkpoint-21"]
    file = tmp_path / "checkpoint-21" / "state.safetensors"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"checkpoint-21 is left out: state.safetensors is damaged"):
        history = Case().fit(Budget(epochs=3), work=tmp_path)
    assert history.resumed_from == 14
    assert timeless(history.records) == timeless(whole.records)


def test_a_log_that_was_cut_short_is_noticed(tmp_path):
    whole = Case().fit(Budget(epochs=3), work=tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.warns(UserWarning, match="log.jsonl is shorter"):
        history = Case().fit(Budget(epochs=3), work=tmp_path)
    assert history.resumed_from is None
    assert timeless(history.records) == timeless(whole.records)


def test_checkpoint_holds_frozen_parameters_and_nothing_of_the_teacher(tmp_path):
    case = Case()
    case.student[0].weight.requires_grad_(False)
    case.fit(Budget(epochs=1), work=tmp_path)
    with safe_open(tmp_path / "checkpoint-7" / "state.safetensors", "pt") as file:
        names = list(file.keys())
        held = [file.get_tensor(name) for name in names]
    assert "student/0.weight" in names
    for parameter in case.teacher.parameters():
        assert not any(each.shape == parameter.shape and torch.equal(each, parameter) for each in held)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    Case().fit(Budget(epochs=1), work=tmp_path)
    other = Case()
    other.student = nn.Linear(5, 3)
    with pytest.raises(RecipeError, match="remove the work folder"):
        other.fit(Budget(epochs=1), work=tmp_path)
    with pytest.raises(RecipeError, match="remove the work folder"):
        Case().fit(Budget(epochs=1), work=tmp_path, select=("loss", "min"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_same_call_goes_on(tmp_path, number):
    whole = Case(dropout=0.3)
    expected = whole.fit(Budget(epochs=3), select=("loss", "min"), log_every=4)
    before = signal.getsignal(number)
    cut = Case(dropout=0.3)
    update, count = cut.update, [0]

    class Asked(Descent):
        def __call__(self, window, clock):
            count[0] += 1
            if count[0] == 10:
                os.kill(os.getpid(), number)
            return super().__call__(window, clock)

    cut.update = Asked(update.forward, update.teachers, update.criterion, update.optimizer, lr=update.lr)
    with pytest.raises(Interrupted, match=rf"stopped by {number.name} at step 10.*the same command continues") as info:
        cut.fit(Budget(epochs=3), work=tmp_path, select=("loss", "min"), log_every=4)
    assert info.value.signal == number
    assert signal.getsignal(number) is before
    rest = Case(dropout=0.3)
    history = rest.fit(Budget(epochs=3), work=tmp_path, select=("loss", "min"), log_every=4)
    assert history.resumed_from == 10
    assert timeless(history.records) == timeless(expected.records)
    assert equal_states(rest.student.state_dict(), whole.student.state_dict())


def test_a_signal_during_validation_leaves_at_once(tmp_path):
    def fault(case):
        if case.calls == 2:
            torch.rand(3)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("validation went on")

    expected = Case(dropout=0.3).fit(Budget(epochs=3))
    with pytest.raises(Interrupted, match="at step 14"):
        Case(dropout=0.3, fault=fault).fit(Budget(epochs=3), work=tmp_path)
    history = Case(dropout=0.3).fit(Budget(epochs=3), work=tmp_path)
    assert history.resumed_from == 14
    assert timeless(history.records) == timeless(expected.records)


def test_outside_the_main_thread_no_handler_is_touched(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []
    case = Case(fault=lambda case: seen.append(signal.getsignal(signal.SIGTERM)))
    thread = threading.Thread(target=case.fit, args=(Budget(epochs=1), tmp_path))
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("work", [True, False])
def test_a_bad_batch_is_left_out_after_going_back(tmp_path, work):
    work = tmp_path if work else None
    poisoned = Case(Toy(poison=[(1, 3)]), dropout=0.3)
    with pytest.warns(UserWarning, match="batch 3 of epoch 1; going back to step 7") as told:
        history = poisoned.fit(Budget(epochs=3), work=work, log_every=4)
    rollback = [r for r in history.records if r["kind"] == "rollback"]
    keys = [f"{int(k):016x}" for k in Toy().make(1, 3).keys[:4]]
    where = {"kind": "rollback", "step": 10, "epoch": 1, "batch": 3, "batches": 1, "keys": keys}
    assert [{name: each[name] for name in where} for each in rollback] == [where]
    assert "8 samples" in rollback[0]["why"]
    assert "its inputs are not finite" in rollback[0]["why"]
    assert any("batch 3 of epoch 1 is not finite: 8 samples" in str(each.message) for each in told)
    assert sorted(history.left_out) == sorted(f"{int(k):016x}" for k in Toy().make(1, 3).keys)
    assert history.steps == 20
    # The oracle: the same steps by hand, without that batch.
    by_hand = Case(Toy(), dropout=0.3)
    for epoch in range(3):
        for batch in range(7):
            if (epoch, batch) != (1, 3):
                by_hand.update([by_hand.source.make(epoch, batch)], fine_clock(0))
    assert equal_states(by_hand.student.state_dict(), poisoned.student.state_dict())


def test_where_it_went_back_to_and_kills_in_between_change_nothing(tmp_path):
    poison = [(0, 5), (2, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        often = Case(Toy(poison=poison), dropout=0.3)
        one = often.fit(Budget(epochs=4), work=tmp_path / "a", checkpoint_seconds=0.0)
        seldom = Case(Toy(poison=poison), dropout=0.3)
        two = seldom.fit(Budget(epochs=4), work=tmp_path / "b", checkpoint_seconds=1e9)
        assert timeless(one.records) == timeless(two.records)
        assert equal_states(often.student.state_dict(), seldom.student.state_dict())
        for calls in (1, 2, 3):

            def cut(case, calls=calls):
                if case.calls == calls:
                    raise KeyboardInterrupt

            work = tmp_path / str(calls)
            with pytest.raises(KeyboardInterrupt):
                Case(Toy(poison=poison), dropout=0.3, fault=cut).fit(Budget(epochs=4), work, checkpoint_seconds=0.0)
            rest = Case(Toy(poison=poison), dropout=0.3).fit(Budget(epochs=4), work)
            assert timeless(rest.records) == timeless(one.records)


@pytest.mark.parametrize("work", [True, False])
def test_three_bad_batches_end_the_run_with_finite_weights(tmp_path, work):
    case = Case(Toy(poison=[(0, 2), (0, 4), (1, 0)]))
    with (
        pytest.warns(UserWarning, match="going back to step"),
        pytest.raises(Diverged, match=r"3 times \(batch 2 of epoch 0; batch 4 of epoch 0; batch 0 of epoch 1") as info,
    ):
        case.fit(Budget(epochs=3), work=tmp_path if work else None)
    assert "its inputs are not finite" in str(info.value)
    assert "lower lr" not in str(info.value)
    assert "last finite loss was 0." in str(info.value) or "last finite loss was 1." in str(info.value)
    assert all(torch.isfinite(each).all() for each in case.student.parameters())


def test_flags_of_an_accelerator_are_read_late_but_before_any_checkpoint(tmp_path):
    """An update that reports `finite` instead of raising: the weights are spoiled, and still none is saved."""
    case = Case(Toy(poison=[(1, 2)]))
    criterion, forward = case.criterion, predictor(case.student)

    def late(window, clock):
        with torch.no_grad():
            teacher_outputs = predictor(case.teacher)(window[0])
        loss, _ = criterion(forward(window[0]), {"t": teacher_outputs}, window[0], clock)
        case.optimizer.zero_grad()
        loss.backward()
        case.optimizer.step()
        return {"loss": torch.zeros(()), "finite": torch.isfinite(loss).float()}

    state = State(student=case.student, optimizer=case.optimizer)
    with pytest.warns(UserWarning, match="batch 2 of epoch 1"):
        history = fit(late, case.source, state, Budget(epochs=3), work=tmp_path)
    assert history.steps == 20
    assert [r["kind"] for r in history.records].count("rollback") == 1
    assert "finite" not in history.records[1]["terms"]
    assert all(torch.isfinite(each).all() for each in case.student.parameters())


def test_without_a_guard_numbers_pass():
    weight = nn.Parameter(torch.ones(5, 1))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def update(window, clock):
        loss = (window[0].side("student") @ weight).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    state = State(optimizer=optimizer)
    history = fit(update, Toy(poison=[(0, 1)]), state, Budget(epochs=1), options=Options(guard=None, log_every=7))
    assert [r["loss"] for r in history.records] == [None]


def test_a_user_s_own_update_with_an_average_of_weights(tmp_path):
    def build():
        student = network(0)
        average = torch.optim.swa_utils.AveragedModel(
            student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

        def update(window, clock):
            loss = nn.functional.cross_entropy(student(window[0].side("student")), window[0].target)
            logged = descend(loss, optimizer)
            average.update_parameters(student)
            return {**logged, "cross_entropy": loss}

        return update, average, State(student=student, optimizer=optimizer, average=average)

    update, whole, state = build()
    expected = fit(update, Toy(), state, Budget(epochs=3), options=Options(log_every=3))
    update, _, state = build()
    fit(update, Toy(), state, Budget(epochs=2), work=tmp_path, options=Options(log_every=3))
    update, average, state = build()
    history = fit(update, Toy(), state, Budget(epochs=3), work=tmp_path, options=Options(log_every=3))
    assert history.resumed_from == 14
    assert equal_states(whole.state_dict(), average.state_dict())
    assert timeless(history.records)[-1] == timeless(expected.records)[-1]


def test_progress_is_told():
    told = []
    Case().fit(Budget(epochs=2), progress=lambda *args: told.append(args))
    assert told[-1][:2] == (14, 14)
    assert "loss" in told[-1][2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"accumulate": 0}, "accumulate is 0; allowed: 1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"select": ("loss", "least")}, "write"),
        ({"select": ("accuraci", "max")}, "did you mean accuracy"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        Case().fit(Budget(epochs=1), **options)


def test_wrong_parts_are_named():
    case = Case()
    with pytest.raises(RecipeError, match="state student: str has no state_dict"):
        State(student="net")
    with pytest.raises(RecipeError, match="state random: fit keeps a part of this name"):
        fit(case.update, case.source, State(random=case.student), Budget(epochs=1))
    with pytest.raises(RecipeError, match="give validate"):
        case.fit(Budget(epochs=1), validate=False, select=("loss", "min"))
    with pytest.raises(RecipeError, match="a part called student"):
        fit(
            case.update,
            case.source,
            State(net=case.student),
            Budget(epochs=1),
            validate=case.validate,
            options=Options(select=("loss", "min")),
        )
    with pytest.raises(DataError, match="no batches"):
        fit(case.update, Toy(sizes=()), State(), Budget(epochs=1))


def test_guard_counts_bad_batches():
    case = Case(Toy(poison=[(0, 2)]))
    with pytest.raises(Diverged, match="1 times"):
        case.fit(Budget(epochs=1), guard=Guard(limit=1))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_equal_scores_the_first_is_kept(mode):
    case = Case()
    state = State(student=case.student, optimizer=case.optimizer)
    values = iter([0.5, 0.25, 0.25, 0.5] if mode == "min" else [0.25, 0.5, 0.5, 0.25])
    history = fit(
        case.update,
        case.source,
        state,
        Budget(epochs=4),
        validate=lambda: {"x": next(values)},
        options=Options(select=("x", mode)),
    )
    assert history.best_step == 14


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    case = Case()
    case.fit(Budget(steps=5), work=tmp_path, checkpoint_seconds=0.0)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize(("epochs", "every"), [(40, 2), (41, 3), (20, 1), (60, 3)])
def test_ends_of_epochs_are_validated_a_twentieth_of_the_run_apart(epochs, every):
    """Epochs of one step; what is exactly a twentieth after the last validation is due."""
    history = Case(Toy((4,))).fit(Budget(epochs=epochs))
    validated = [r["step"] for r in history.records if r["kind"] == "validation"]
    assert validated == sorted({*range(every, epochs + 1, every), epochs})
    assert len(validated) <= 20


@pytest.mark.parametrize(("steps", "expected"), [(3, [1, 2, 3]), (7, [2, 4, 6, 7]), (11, [3, 6, 9, 11])])
def test_a_run_below_an_epoch_is_validated_after_each_fifth_rounded_up(steps, expected):
    history = Case(Toy((4,) * 40)).fit(Budget(steps=steps))
    assert [r["step"] for r in history.records if r["kind"] == "validation"] == expected


def test_the_first_step_that_was_not_finite_is_the_one_that_is_left_out():
    """As an accelerator tells it: several steps are read at once."""
    means = Means()
    for place, flag in enumerate((1.0, 0.0, 1.0, 0.0)):
        means.add({"loss": torch.tensor(float(place)), "finite": torch.tensor(flag)}, (5, place, [None]))
    origin = means.settle()
    assert (origin.epoch, origin.batch, origin.batches) == (5, 1, 1)
    assert means.last_finite == 0.0
    means.add({"loss": torch.tensor(torch.inf)}, (5, 9, [None]))
    assert means.settle().batch == 9


def test_progress_is_told_while_an_epoch_lasts_at_most_ten_times_a_second():
    """An epoch that does not end before its budget: all but the last are told between two steps."""
    told = []
    Case(Toy((4,) * 100_000)).fit(
        Budget(seconds=0.6),
        validate=False,
        progress=lambda done, total, text: told.append((time.monotonic(), done, total)),
    )
    moments, done, total = zip(*told)
    assert len(told) > 1
    assert min((b - a for a, b in pairwise(moments[:-1])), default=1.0) > 0.09
    assert list(done) == sorted(done)
    assert set(total) == {0.6}
