"""Spec: frozen data with equal meaning from Python and from plain data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import decoct as dc
from decoct.errors import RecipeError, dotted
from decoct.objectives import CATALOGUE
from decoct.objectives.base import Objective, Sum
from decoct.spec import Choice
from decoct.training.budget import Budget
from decoct.training.schedules import Linear

weights = st.floats(min_value=-100, max_value=100, allow_nan=False)


@given(weights, st.floats(min_value=0.1, max_value=100))
def test_plain_data_and_repr_give_the_same_spec(weight, temperature):
    spec = weight * dc.KD(temperature=temperature) + dc.CrossEntropy()
    names = {"KD": dc.KD, "CrossEntropy": dc.CrossEntropy, "Sum": Sum}
    assert eval(repr(spec), names) == spec
    assert Choice("decoct.objectives").validate(spec.plain()) == spec
    assert Choice("decoct.objectives").validate(spec.plain(defaults=False)) == spec
    assert hash(Choice("decoct.objectives").validate(spec.plain())) == hash(spec)


def test_specs_differ_by_any_field():
    assert dc.KD(temperature=4) == dc.KD(temperature=4.0)
    assert dc.KD(temperature=4).digest() != dc.KD(temperature=5).digest()
    assert len({dc.KD(), dc.KD(), dc.CrossEntropy()}) == 2


def test_a_spec_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        dc.KD().temperature = 3


@given(weights, weights, weights)
def test_algebra_of_objectives(a, b, c):
    x, y, z = dc.KD(), dc.CrossEntropy(), dc.TaskLoss()
    assert (a * (b * x)).weight == pytest.approx(a * b)
    assert [t.weight for t in (a * (x + b * y)).flat()] == pytest.approx([a, a * b])
    assert [t.label for t in ((x + y) + z).flat()] == [t.label for t in (x + (y + z)).flat()]
    assert sum([a * x, b * y]) == a * x + b * y
    assert 0 + x == x
    assert x * c == c * x


def test_a_schedule_may_be_a_weight():
    assert (Linear(1, 0) * dc.KD()).weight == Linear(1, 0)
    assert (2 * (Linear(1, 0) * dc.KD())).weight == Linear(2, 0)


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(RecipeError, match="two terms are called kd"):
        dc.KD() + dc.KD()
    assert [t.label for t in (dc.KD() + dc.KD(name="kd_2")).flat()] == ["kd", "kd_2"]


def test_all_problems_are_named_with_their_path():
    plain = {
        "task": {"use": "image_classification"},
        "data": {"use": "digitz"},
        "steps": [
            {"use": "train", "name": "t", "budgt": {}, "batch_size": 0},
            {"use": "distill", "name": "s", "objective": [{"use": "kd", "temprature": 3}]},
        ],
    }
    with pytest.raises(RecipeError) as caught:
        dc.Recipe.parse(plain)
    found = {".".join(map(str, p.path)): p.message for p in caught.value.problems}
    assert "did you mean digits?" in found["data.use"]
    assert found["steps.0.budgt"] == "unknown; did you mean budget?"
    assert "greater than or equal to 1" in found["steps.0.batch_size"]
    assert found["steps.1.objective.terms.0.temprature"] == "unknown; did you mean temperature?"


def test_too_many_positional_arguments_are_refused():
    with pytest.raises(RecipeError, match="3 positional arguments; allowed: at most 2"):
        Linear(1, 2, 3)


def test_budget_takes_exactly_one_unit():
    for wrong in ({}, {"steps": 1, "epochs": 2}):
        with pytest.raises(RecipeError, match="give one of steps, epochs"):
            Budget(**wrong)


def test_a_class_from_outside_needs_leave():
    with pytest.raises(ValueError, match="--plugin os"):
        CATALOGUE.resolve("os.path:join")


def test_catalogue_reads_summaries_without_importing():
    assert all(CATALOGUE.summary(key) for key in CATALOGUE)
    assert issubclass(CATALOGUE.resolve("kd"), Objective)


def test_replace_keeps_what_was_left_at_its_default():
    changed = dc.KD(temperature=2).replace(weight=3.0)
    assert changed == dc.KD(temperature=2, weight=3.0)
    assert changed.model_fields_set == {"temperature", "weight"}


WRONG = [
    ({"budget": {"epochs": True}}, "budget.epochs", "valid number .got True.; true and false are no numbers"),
    ({"budget": {"epochs": "7"}}, "budget.epochs", "valid number .got '7'.; it is text, write 7"),
    ({"budget": {"epochs": "1:30"}}, "budget.epochs", "valid number .got '1:30'.; it is text"),
    ({"budget": {"steps": "1_000"}}, "budget.steps", "valid integer .got '1_000'.; it is text, write 1000"),
    ({"budget": {"steps": 500.0}}, "budget.steps", "valid integer .got 500.0.; write 500"),
    ({"budget": {"epochs": float("inf")}}, "budget.epochs", "finite number .got inf."),
    ({"batch_size": "7"}, "batch_size", "valid integer .got '7'.; it is text, write 7"),
    ({"batch_size": True}, "batch_size", "valid integer .got True."),
    ({"batch_size": 10**25}, "batch_size", "less than or equal to 16777216 .got 1000000"),
    ({"optimizer": {"use": "sgd", "nesterov": 1}}, "optimizer.nesterov", "valid boolean .got 1.; write true or false"),
    ({"optimizer": {"use": "sgd", "nesterov": "true"}}, "optimizer.nesterov", "valid boolean .got 'true'."),
    ({"optimizer": {"use": "sgd", "momentum": False}}, "optimizer.momentum", "valid number .got False."),
    ({"optimizer": {"use": "sgd", "lr": float("inf")}}, "optimizer.lr", "inf is not a finite number"),
]


@pytest.mark.parametrize(
    ("fields", "name", "words"), WRONG, ids=[f"{name}-{n}" for n, (_, name, _) in enumerate(WRONG)]
)
def test_what_is_no_number_or_no_boolean_is_not_made_one(fields, name, words):
    with pytest.raises(RecipeError, match=words) as plain:
        dc.Train.parse({"name": "t", **fields})
    assert [dotted(each.path) for each in plain.value.problems] == [name]
    with pytest.raises(RecipeError, match=words):
        dc.Train(name="t", **fields)


def test_a_literal_number_is_no_boolean_and_no_fraction():
    for wrong in (True, 1.0):
        with pytest.raises(RecipeError, match=f"version: {wrong} is not 1; write 1"):
            dc.Recipe.parse({"version": wrong})


def test_a_seed_too_long_is_refused_with_its_range():
    with pytest.raises(RecipeError, match=r"seed: .*got 1000000.*; allowed: 0 to 9223372036854775807"):
        dc.Recipe.parse({"seed": 10**24})


@pytest.mark.parametrize("made", [np.int8, np.int64, np.uint32])
def test_whole_numbers_of_numpy_are_those_of_python(made):
    step = dc.Train(name="t", batch_size=made(7), budget=Budget(epochs=made(3)), objective=made(2) * dc.KD())
    same = dc.Train(name="t", batch_size=7, budget=Budget(epochs=3), objective=2 * dc.KD())
    assert step == same
    assert step.digest() == same.digest()
    assert type(step.batch_size) is int


def test_fractions_and_booleans_of_numpy_are_those_of_python():
    assert Budget(epochs=np.float32(0.5)) == Budget(epochs=0.5)
    assert dc.KD(temperature=np.float64(3)).plain()["temperature"] == 3.0
    assert dc.SGD(nesterov=np.bool_(True)) == dc.SGD(nesterov=True)
    with pytest.raises(RecipeError, match="valid number"):
        Budget(epochs=np.bool_(True))
