"""Schedules against closed forms: values, bounds, scaling, and what is refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decoct.errors import RecipeError
from decoct.objectives.jsd import JSD
from decoct.objectives.kd import KD
from decoct.spec import Choice
from decoct.training.clock import Clock
from decoct.training.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Release,
    Schedule,
    StepDecay,
    at,
    bounds,
    times,
)

number = st.floats(-50, 50).filter(lambda x: x == 0 or abs(x) > 1e-6)
above = st.floats(1e-3, 50)
fraction = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    a, b = draw(number), draw(number)
    begin, finish = sorted((draw(fraction), draw(fraction)))
    sign = draw(st.sampled_from([-1, 1]))
    return draw(
        st.sampled_from(
            [
                Constant(a),
                Linear(a, b, begin=begin, finish=finish),
                Cosine(a, b, warmup=draw(st.floats(0, 0.9))),
                Exponential(sign * (abs(a) + 0.1), sign * (abs(b) + 0.1), begin=begin, finish=finish),
                Release(a, b, after=begin, over=finish - begin),
                StepDecay(a, draw(st.floats(-1.5, 1.5)), milestones=tuple(sorted({0.2, 0.5, 0.9}))),
            ]
        )
    )


@given(schedules(), fraction)
def test_a_value_lies_within_the_bounds(schedule, progress):
    low, high = schedule.bounds()
    slack = 1e-9 * max(abs(low), abs(high))
    assert low - slack <= schedule.at(Clock(progress=progress)) <= high + slack


@given(schedules(), fraction, number)
def test_times_scales_each_value(schedule, progress, factor):
    clock = Clock(progress=progress)
    assert schedule.times(factor).at(clock) == pytest.approx(factor * schedule.at(clock), rel=1e-9, abs=1e-12)


@given(schedules())
def test_round_trip(schedule):
    assert Choice("decoct.training").validate(schedule.plain()) == schedule
    assert bounds(schedule) == schedule.bounds()
    assert times(2.0, 3.0) == 6.0


@given(above, above, fraction)
def test_exponential_is_its_power_law(start, end, progress):
    found = Exponential(start, end).at(Clock(progress=progress))
    assert found == pytest.approx(start * (end / start) ** progress, rel=1e-9)
    assert Exponential(-start, -end).at(Clock(progress=progress)) == pytest.approx(-found)


@given(number, fraction, st.floats(0.01, 1), fraction)
def test_release_holds_then_falls_as_half_a_cosine(start, after, over, progress):
    over = min(over, 1 - after)
    found = Release(start, after=after, over=over).at(Clock(progress=progress))
    if progress >= after + over:
        assert found == 0
    elif progress <= after:
        assert found == start
    else:
        assert found == pytest.approx(start * (1 + math.cos(math.pi * (progress - after) / over)) / 2, abs=1e-9)


def test_release_all_at_once():
    schedule = Release(0.9, after=0.5, over=0.0)
    assert [schedule.at(Clock(progress=p)) for p in (0.0, 0.49, 0.5, 1.0)] == [0.9, 0.9, 0.0, 0.0]


def test_step_is_torch_s_multistep():
    steps, optimizer = 20, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 15], gamma=0.5)
    schedule = StepDecay(0.8, 0.5, milestones=(8 / steps, 15 / steps))
    for step in range(steps):
        assert schedule.at(Clock(progress=step / steps)) == pytest.approx(oracle.get_last_lr()[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle.step()


def test_cosine_and_linear_against_numpy():
    progress = np.linspace(0, 1, 41)
    found = [Cosine(8, 2).at(Clock(progress=p)) for p in progress]
    np.testing.assert_allclose(found, 2 + 6 * (1 + np.cos(np.pi * progress)) / 2)
    found = [Linear(8, 2, begin=0.25, finish=0.75).at(Clock(progress=p)) for p in progress]
    np.testing.assert_allclose(found, np.interp(progress, [0.25, 0.75], [8, 2]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Linear(1, 0, begin=0.8, finish=0.2), "begin comes first"),
        (lambda: Exponential(1, 0), "both must be above 0"),
        (lambda: Exponential(-1, 2), "else use linear"),
        (lambda: Exponential(1, 2, begin=0.8, finish=0.2), "begin comes first"),
        (lambda: Release(after=0.8, over=0.3), "at most 1"),
        (lambda: StepDecay(1, milestones=(0.5, 0.2)), "ascending order"),
        (lambda: StepDecay(float("inf")), "finite"),
        (lambda: KD(temperature=Linear(4, 0)), "no temperature"),
        (lambda: KD(temperature=Cosine(4, 1, warmup=0.1)), "no temperature"),
        (lambda: KD(temperature=StepDecay(4, -1)), "no temperature"),
        (lambda: KD(temperature=Release(4)), "no temperature"),
        (lambda: JSD(beta=Linear(0.5, 1.0)), "reaches 0 or 1"),
        (lambda: JSD(beta=Release(0.5)), "reaches 0 or 1"),
        (lambda: JSD(beta=Exponential(0.5, 2.0)), "allowed: 0 to 1"),
    ],
)
def test_what_is_refused(build, words):
    with pytest.raises(RecipeError, match=words):
        build()


def test_a_temperature_is_any_schedule_above_zero():
    for written in ({"use": "cosine", "start": 8, "end": 2}, {"use": "exponential", "start": 8, "end": 1}):
        kd = KD.parse({"temperature": written})
        assert at(kd.temperature, Clock()) == 8
    assert at(JSD(beta=Exponential(0.1, 0.9)).beta, Clock(progress=1.0)) == 0.9
