"""Which terms suit which answers: no softmax over predicted numbers, no distance to class ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc
from decoct.errors import RecipeError
from decoct.objectives import CATALOGUE
from decoct.objectives.answers import for_numbers, problem_with, refuse_other_answers
from decoct.objectives.base import Sum
from decoct.objectives.crd import CRD
from decoct.objectives.hint import Hint
from decoct.objectives.kd import KD
from decoct.objectives.refine.attention import AttentionWeighting
from decoct.objectives.refine.confidence import ConfidenceFilter
from decoct.objectives.regression_kd import RegressionKD
from decoct.objectives.task_loss import TaskLoss
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.tasks.detection import Detection
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.multi_task import MultiTask
from decoct.tasks.regression import Regression
from objective_toys import spec

NUMBERS = {
    "regression_kd",
    "logit_mse",
    "task_loss",
    "sum",
    "localization",
    "box_targets",
}
"""Beside terms over features, those that may stand on a task of numbers (the last two read other values)."""
CLASS_TERMS = {
    "adaptive_kl",
    "ard",
    "balanced_cross_entropy",
    "batch_correlation",
    "binary_kd",
    "class_correlation",
    "cross_entropy",
    "ctkd",
    "dist",
    "dkd",
    "forward_kl",
    "jsd",
    "kd",
    "nkd",
    "reverse_kl",
    "rslad",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "taylor_cross_entropy",
    "total_variation",
    "uld",
    "wsld",
}


def loaders(outputs: int = 3) -> tuple[DataLoader, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=generator)
    y = x @ torch.randn(4, outputs, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=32), x, y


def nets(outputs: int = 3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), nn.Linear(4, outputs)


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_every_term_of_the_catalogue_knows_its_answers(name: str) -> None:
    numbers, classes = Regression().answer, ImageClassification().answer
    assert (problem_with(spec(name), numbers) is not None) == (name in CLASS_TERMS)
    assert (problem_with(spec(name), classes) is not None) == (name == "regression_kd")
    if "layers" not in CATALOGUE.resolve(name).model_fields and name not in ("fsp", "afd"):
        assert name in CLASS_TERMS | NUMBERS


def test_detectors_have_no_classes_to_compare() -> None:
    answer = Detection().answer
    assert "has no classes to be sure of" in str(problem_with(KD(), answer))
    assert "answers with none" in str(problem_with(RegressionKD(), answer))
    assert problem_with(TaskLoss(), answer) is None


def test_what_reads_classes_inside_a_term_is_refused_too() -> None:
    numbers = Regression().answer
    layers = {"a": "a"}
    assert "by_class" not in str(problem_with(CRD(layers=layers), numbers))
    assert problem_with(CRD(layers=layers), numbers) is None
    assert problem_with(CRD(layers=layers, by_class=True), numbers) is not None
    refined = RegressionKD(refine=[ConfidenceFilter()])
    assert "refine with confidence reads probabilities" in str(problem_with(refined, numbers))
    assert problem_with(Hint(layers=layers, refine=[AttentionWeighting()]), numbers) is None
    whole = Sum(terms=(RegressionKD(), TaskLoss()), refine=[ConfidenceFilter()])
    with pytest.raises(RecipeError, match="refine with confidence"):
        refuse_other_answers(whole, numbers)


def test_a_head_decides_for_its_terms() -> None:
    heads = {"kind": {"use": "classes"}, "price": {"use": "numbers"}}
    answer = MultiTask(reads={"use": "tables"}, heads=heads).answer
    assert problem_with(KD(head="kind"), answer) is None
    assert problem_with(KD(head="price"), answer) is not None
    assert problem_with(RegressionKD(head="price"), answer) is None
    assert problem_with(RegressionKD(head="kind"), answer) is not None
    assert str(problem_with(KD(), answer)).endswith("give it a `head`: kind, price")


def test_the_default_for_numbers_keeps_weights_and_names() -> None:
    found = for_numbers(0.9 * KD(temperature=4.0, name="soft", teacher="t") + 0.1 * TaskLoss())
    assert found == 0.9 * RegressionKD(name="soft", teacher="t") + 0.1 * TaskLoss()
    assert for_numbers(TaskLoss()) == TaskLoss()


def test_distilling_numbers_refuses_a_softmax_over_them(tmp_path: Path) -> None:
    train, _, _ = loaders()
    big, small = nets()
    with pytest.raises(RecipeError, match=r"kd compares distributions .* predicts numbers; use regression_kd"):
        dc.distill(big, small, train, task="regression", objective=dc.KD(), out=tmp_path, epochs=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="kd compares distributions"):
        dc.Distiller(big, small, 0.9 * dc.KD() + 0.1 * dc.TaskLoss(), task="regression")
    with pytest.raises(RecipeError, match="regression_kd is for predicted numbers"):
        dc.Distiller(big, small, dc.RegressionKD())


def test_the_default_objective_for_numbers_is_that_of_the_oracle(tmp_path: Path) -> None:
    _, x, y = loaders()
    big, small = nets()
    before = [each.detach().double().numpy().copy() for each in (small.weight, small.bias)]
    found = dc.distill(
        big,
        small,
        DataLoader(TensorDataset(x, y), batch_size=96),
        task="regression",
        out=tmp_path,
        budget=dc.Budget(steps=1),
        optimizer=dc.SGD(lr=0.1),
        select="last",
    )
    weight, bias = before
    rows, target = x.double().numpy(), y.double().numpy()
    with torch.no_grad():
        teacher = big.double()(x.double()).numpy()
    said = rows @ weight.T + bias
    error, bound = said - target, (said - target) ** 2 > (teacher - target) ** 2
    slope = 0.9 * (2 * np.where(bound, error, 0.0) + 2 * (said - teacher)) + 0.1 * 2 * error
    slope /= slope.size
    student = found.student
    np.testing.assert_allclose(student.weight.detach().numpy(), weight - 0.1 * slope.T @ rows, atol=1e-5)
    np.testing.assert_allclose(student.bias.detach().numpy(), bias - 0.1 * slope.sum(0), atol=1e-5)


def recipe(folder: Path, *steps: dict[str, Any], task: str = "regression") -> dict[str, Any]:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 3))
    kinds = np.where(rows[:, 0] > 0, "yes", "no")
    lines = [f"{a:.4f},{b:.4f},{c:.4f},{kind}" for (a, b, c), kind in zip(rows, kinds)]
    (folder / "table.csv").write_text("\n".join(["a,b,price,kind", *lines]))
    target = {"target": "price", "kind": "regression", "drop": ["kind"]}
    if task != "regression":
        target = {"target": "kind", "drop": ["price"]}
    return {
        "version": 1,
        "task": {"use": task},
        "data": {"use": "csv", "path": str(folder / "table.csv"), **target},
        "models": {"large": {"use": "mlp", "hidden": [8]}, "small": {"use": "mlp", "hidden": [4]}},
        "steps": [{"use": "train", "name": "teacher", "inputs": {"model": "large"}}, *steps],
    }


PAIR = {"inputs": {"model": "small", "teacher": "teacher"}}
WRONG = {
    "distill": ({"use": "distill", **PAIR, "objective": {"use": "kd"}}, r"steps\[1\]\.objective: kd compares"),
    "ensemble": (
        {"use": "distill", **PAIR, "objective": {"use": "logit_mse"}, "combine": {"use": "ensemble"}},
        r"combine: the task predicts numbers; set average to 'logits'",
    ),
    "refinement": (
        {"use": "distill", **PAIR, "objective": {"use": "logit_mse", "refine": [{"use": "entropy"}]}},
        r"refine with entropy reads probabilities",
    ),
    "mix": ({"use": "distill", **PAIR, "mix": {"use": "mixup"}}, r"mix: mix is mixup"),
    "labels": ({"use": "distill", **PAIR, "labels": 5}, r"labels is 5 .* give data\.labels: 5"),
    "compression": (
        {"use": "prune", "inputs": {"model": "teacher"}, "objective": {"use": "dist"}},
        r"steps\[1\]\.objective: dist compares",
    ),
    "search": (
        {
            "use": "search",
            "inputs": {"model": "teacher"},
            "step": {"use": "prune", "objective": {"use": "cross_entropy"}},
            "setting": "scheme.ratio",
            "low": 0.1,
            "high": 0.5,
            "max_size_bytes": 1000,
        },
        r"steps\[1\]\.step\.objective: cross_entropy reads class ids",
    ),
    "attack": ({"use": "robustness", "inputs": {"teacher": "teacher"}}, r"attack: pgd raises the cross-entropy"),
    "attacked": ({"use": "adversarial_distill", **PAIR}, r"objective: ard reads class ids|objective: ard compares"),
    "exits": (
        {"use": "choose_exit", "inputs": {"model": "teacher"}, "threshold": 0.9},
        r"threshold is a probability of a class",
    ),
    "store": (
        {"use": "label", "inputs": {"teacher": "teacher"}, "keep": {"use": "top_k", "k": 2}},
        r"keep: keep is top_k, and the task predicts numbers",
    ),
    "estimator": (
        {"use": "train_estimator", "estimator": {"use": "logistic_regression"}},
        r"estimator: logistic_regression learns classes",
    ),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_settings_that_presuppose_classes_are_refused_before_anything_runs(tmp_path: Path, what: str) -> None:
    step, words = WRONG[what]
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(recipe(tmp_path, {"name": "student", **step}))


def test_terms_for_numbers_are_refused_on_classes(tmp_path: Path) -> None:
    step = {"use": "distill", "name": "student", **PAIR, "objective": {"use": "regression_kd"}}
    with pytest.raises(RecipeError, match="regression_kd is for predicted numbers"):
        Recipe.parse(recipe(tmp_path, step, task="tabular_classification"))
    wrong = {"use": "train_estimator", "name": "student", "estimator": {"use": "linear"}}
    with pytest.raises(RecipeError, match="linear predicts numbers"):
        Recipe.parse(recipe(tmp_path, wrong, task="tabular_classification"))


@pytest.mark.parametrize(
    ("step", "weights"),
    [
        ({"use": "distill", **PAIR}, (0.9, 0.1)),
        ({"use": "born_again", "inputs": {"model": "small"}}, (0.5, 0.5)),
        ({"use": "assistants", **PAIR, "assistants": [{"use": "mlp", "hidden": [6]}]}, (0.9, 0.1)),
        ({"use": "meta_distill", **PAIR}, (0.5, 0.5)),
    ],
)
def test_steps_that_leave_it_open_get_the_default_for_numbers(tmp_path: Path, step: Any, weights: Any) -> None:
    made = Recipe.parse(recipe(tmp_path, {"name": "student", **step}))
    expected = weights[0] * RegressionKD() + weights[1] * TaskLoss()
    assert made.steps[1].objective == expected
    assert "regression_kd" in made.yaml()
    assert Recipe.parse(made.plain()) == made == Recipe.parse(made.plain(defaults=False))
    assert len(check(made)) == 2


def test_a_step_that_compresses_under_a_teacher_gets_it_too(tmp_path: Path) -> None:
    step = {"use": "prune", "name": "small_one", "inputs": {"model": "teacher", "guide": "teacher"}, "ratio": 0.5}
    made = Recipe.parse(recipe(tmp_path, step))
    assert "regression_kd, task_loss" in check(made)[1].note


def test_recipes_of_classes_stay_as_they_were(tmp_path: Path) -> None:
    step = {"use": "distill", "name": "student", **PAIR}
    made = Recipe.parse(recipe(tmp_path, step, task="tabular_classification"))
    assert made.steps[1].objective == 0.9 * KD(temperature=4.0) + 0.1 * TaskLoss()
    assert "objective" not in made.yaml()
