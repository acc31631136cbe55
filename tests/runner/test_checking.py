"""`check`: what a student asks of a store that its own recipe writes, before teacher and labels are paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import decoct as dc
from decoct.errors import DecoctError, RecipeError, ResourceError
from decoct.models.given import given_model
from decoct.runner.checking import check
from tiny import LEARN, PAIR, recipe

AUGMENTED = {"use": "image_classification", "augment": {"crop": 1}}
STORED: dict[str, Any] = {
    **PAIR,
    "data": {"use": "digits", "limit": 60},
    "models": {"large": {"use": "mlp", "hidden": [12]}, "small": {"use": "mlp", "hidden": [6]}},
    "steps": [
        {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
        {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}, **LEARN},
    ],
}
VAST: dict[str, Any] = {"use": "mlp", "hidden": [65536] * 64}
BUCKET: dict[str, Any] = {"use": "top_k", "k": 3}
SAMPLE: dict[str, Any] = {**BUCKET, "tail": "sample"}


def of(label: dict[str, Any], student: dict[str, Any], **changes: Any) -> Any:
    plain = {**STORED, "steps": [dict(each) for each in STORED["steps"]]}
    plain["steps"][1] |= label
    plain["steps"][2] |= student
    return recipe(plain, **changes)


@pytest.mark.parametrize(
    ("keep", "objective", "message"),
    [
        (BUCKET, {"use": "dist"}, r"steps\[2\].*dist"),
        (SAMPLE, {"use": "dist"}, r"steps\[2\].*dist"),
        (BUCKET, {"use": "reverse_kl"}, r"steps\[2\].*reverse_kl"),
        (SAMPLE, {"use": "kd", "temperature": 4}, r"steps\[2\].*temperature"),
        (BUCKET, {"use": "kd", "temperature": 0.5}, r"steps\[2\].*temperature is 0\.5"),
    ],
)
def test_what_a_cut_store_cannot_tell_is_refused(keep: Any, objective: Any, message: str, tmp_path: Path) -> None:
    made = of({"keep": keep}, {"objective": objective})
    with pytest.raises(RecipeError, match=message) as found:
        check(made)
    with pytest.raises(RecipeError) as later:
        made.run(tmp_path)
    text = str(found.value).split(": ", 1)[1]
    assert text in str(later.value)


@pytest.mark.parametrize(
    ("keep", "objective"),
    [
        (BUCKET, {"use": "kd", "temperature": 4}),
        (SAMPLE, {"use": "kd", "temperature": 1}),
        ({**BUCKET, "tail": "uniform"}, {"use": "dist"}),
        ({"use": "dense", "dtype": "uint8"}, {"use": "reverse_kl"}),
    ],
)
def test_what_a_store_can_tell_passes(keep: Any, objective: Any) -> None:
    assert len(check(of({"keep": keep}, {"objective": objective}))) == 3


def test_predicted_numbers_of_a_store_pass(tmp_path: Path) -> None:
    rows = [f"{number},{number % 7},{number / 3}" for number in range(60)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["a,b,price", *rows]))
    data = {"use": "csv", "path": str(table), "target": "price", "kind": "regression"}
    made = of({}, {"objective": {"use": "regression_kd"}}, task={"use": "regression"}, data=data)
    assert len(check(made)) == 3


@pytest.mark.parametrize(
    ("label", "student", "message"),
    [
        ({"views": 4}, {"views": 8}, r"steps\[2\]: views is 8 \(seed 0\), and the store 'teacher' holds 4"),
        ({}, {"views": 4}, r"views is 4 .* holds 8"),
        ({"views": {"count": 4, "seed": 1}}, {"views": 4}, r"holds 4 \(seed 1\)"),
        ({"views": 4}, {"augment": False}, r"augment is false, and the store 'teacher' was labelled with .*true"),
        ({"augment": False}, {}, r"augment is true, and the store 'teacher' was labelled with augment: false"),
        ({"views": 4}, {"mix": {"use": "mixup"}}, r"mix is use mixup.*labelled with none"),
        ({"views": 4, "mix": {"use": "mixup"}}, {}, r"mix is none, and the store"),
        ({"views": 4}, {"teacher_views": 2}, r"teacher_views is 2, and teacher is a store"),
        (
            {"views": 4, "mix": {"use": "cutmix"}, "labels": 40},
            {"mix": {"use": "cutmix"}, "objective": {"use": "kd"}},
            r"labels is not set, and the store 'teacher' was labelled with 40",
        ),
    ],
)
def test_other_views_than_those_labelled_are_refused(label: Any, student: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as found:
        check(of(label, student, task=AUGMENTED))
    assert len(found.value.problems) == 1


@pytest.mark.parametrize(
    ("label", "student"),
    [
        ({"views": 4}, {}),
        ({"views": 4}, {"views": 4}),
        ({"augment": False}, {"augment": False}),
        ({"views": 4, "mix": {"use": "cutmix"}}, {"mix": {"use": "cutmix"}, "objective": {"use": "kd"}}),
    ],
)
def test_the_views_labelled_pass(label: Any, student: Any) -> None:
    assert len(check(of(label, student, task=AUGMENTED))) == 3


def test_a_store_that_is_there_is_looked_at_too(tmp_path: Path) -> None:
    made = of({"keep": BUCKET, "views": 4}, {}, task=AUGMENTED)
    store = made.run(tmp_path).artifact("labels").folder
    plain = {
        **STORED,
        "task": AUGMENTED,
        "models": {**STORED["models"], "kept": {"use": "stored", "path": str(store)}},
        "steps": [{**STORED["steps"][2], "inputs": {"model": "small", "teacher": "kept"}}],
    }
    assert len(check(recipe(plain))) == 1
    with pytest.raises(RecipeError, match="dist"):
        check(recipe({**plain, "steps": [{**plain["steps"][0], "objective": {"use": "dist"}}]}))
    with pytest.raises(RecipeError, match="views is 8"):
        check(recipe({**plain, "steps": [{**plain["steps"][0], "views": 8}]}))


def test_several_teachers_that_answer_as_one_are_kept_alike() -> None:
    plain = {**STORED, "steps": [STORED["steps"][0], {**STORED["steps"][0], "name": "other"}, *STORED["steps"][1:]]}
    both = {"use": "label", "name": "labels", "inputs": {"one": "teacher", "two": "other"}, "keep": BUCKET}
    plain["steps"][2] = {**both, "combine": {"use": "ensemble"}}
    assert len(check(recipe(plain))) == 4
    with pytest.raises(RecipeError, match=r"steps\[3\].*dist"):
        check(recipe(plain, steps__3__objective={"use": "dist"}))


class Branching(nn.Module):
    """Which way it goes hangs on the numbers that it meets, so that it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits if logits.sum() > 0 else -logits


SHIPPING = (
    {"use": "export", "name": "file"},
    {"use": "export", "name": "file", "target": {"use": "torch_export"}},
    {"use": "quantize", "name": "file", "scheme": {"use": "dynamic"}},
)


@pytest.mark.parametrize("step", SHIPPING)
@pytest.mark.parametrize("from_step", [False, True])
def test_a_model_that_cannot_become_a_file_is_refused_up_front(step: dict[str, Any], from_step: bool) -> None:
    train = [{"use": "train", "name": "student", "inputs": {"model": "small"}, **LEARN}] if from_step else []
    if step["use"] == "quantize" and not from_step:
        pytest.skip("takes what a step made")
    module = Branching().train()
    plain = {**STORED, "steps": [*train, {**step, "inputs": {"model": "student" if from_step else "small"}}]}
    made = recipe(plain).replace(models={"small": given_model("small", module)})
    with pytest.raises(RecipeError, match=rf"steps\[{len(train)}\]: .*cannot be traced"):
        check(made, given={"small": module})
    assert module.training
    fine = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert check(made.replace(models={"small": given_model("small", fine)}), given={"small": fine})


def test_a_model_that_is_no_network_here_is_refused_up_front(tmp_path: Path) -> None:
    dc.export(nn.Linear(4, 2), tmp_path / "m.onnx", example=torch.ones(2, 4))
    for model, message in (
        ({"use": "onnx", "path": str(tmp_path / "m.onnx")}, "is an ONNX file already"),
        ({"use": "http", "url": "http://127.0.0.1:1/"}, "http answers elsewhere"),
    ):
        plain = {**STORED, "models": {"small": model}}
        made = recipe({**plain, "steps": [{"use": "export", "name": "file", "inputs": {"model": "small"}}]})
        with pytest.raises(RecipeError, match=rf"steps\[0\].*{message}"):
            check(made)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": {"large": VAST, "small": "mlp"}}, ResourceError, r"teacher.*mlp: its weights"),
        ({"task": {**AUGMENTED, "augment": {"crop": 8}}}, RecipeError, "task.augment.crop: 8 for images of 8x8 pixels"),
        ({"task": {**AUGMENTED, "augment": {"crop": 10**6}}}, RecipeError, "crop: .*less than or equal to"),
        ({"task": {"use": "image_classification", "size": 16384}}, ResourceError, "a batch of .*1x16384x16384"),
        ({"data": {"use": "digits", "path": "x"}}, RecipeError, "digits has no files"),
        ({"data": {"use": "image_folder", "path": "/dev/zero"}}, DecoctError, "no folder but a device"),
    ],
)  # fmt: skip
def test_what_would_fill_the_memory_is_found(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(recipe({**STORED, **changes}))
