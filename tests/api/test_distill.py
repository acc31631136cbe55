"""The Python surface on one's own modules and loaders, in one call and inside one's own loop."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import decoct as dc
from api_toys import SHORT, Images, Rows, Texts, equal, images, loader, network, text_rows
from decoct.errors import DataError, RecipeError
from tiny import PAIR, recipe, records


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    return network(8, 1), network(3, 2)


@pytest.fixture(scope="module")
def distilled(pair: tuple[nn.Module, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("api") / "small"
    val = loader(*images(seed=1), shuffle=False)
    return dc.distill(*pair, train=loader(*images()), val=val, out=out, **SHORT)


# distill


def test_student_scores_history_and_export(distilled: Any, tmp_path: Path) -> None:
    import onnxruntime

    assert isinstance(distilled.student, Images)
    assert not distilled.student.training
    assert {"accuracy", "f1", "cross_entropy"} <= set(distilled.scores)
    assert [each["step"] for each in distilled.history if each["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert set(distilled.history[0]["terms"]) == {"kd", "task_loss"}
    x, target = images(seed=1)
    with torch.no_grad():
        logits = distilled.student(x)
    assert distilled.scores["accuracy"] == (logits.argmax(1) == target).double().mean().item()
    record = distilled.export(tmp_path / "small.onnx", example=x[:4])
    assert record["file_bytes"] == (tmp_path / "small.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-5)
    assert distilled.export(tmp_path / "again.onnx")["verified"]["agreement"] == 1.0


def test_batches_without_length_train_for_steps(pair: tuple[nn.Module, nn.Module]) -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(loader(*images(), shuffle=False))

        def __len__(self) -> int:
            raise NotImplementedError("nobody knows")

    fitted = dc.distill(*pair, train=Stream(), budget={"steps": 5}, log_every=1)
    assert [each["step"] for each in fitted.history if each["kind"] == "train"] == [1, 2, 3, 4, 5]
    with pytest.raises(RecipeError, match=r"2 epochs, and the data have no length .*such as budget=\{steps: 1000\}"):
        dc.distill(*pair, train=Stream(), epochs=2)


def test_a_generator_is_refused() -> None:
    batches = (each for each in loader(*images()))
    with pytest.raises(DataError, match="train is a generator, which is used up after one pass"):
        dc.distill(network(8, 1), network(3, 2), train=batches, epochs=1)


def test_what_was_passed_in_is_as_before(tmp_path: Path) -> None:
    big, small = network(8, 1).train(), network(3, 2).eval()
    big.head.weight.requires_grad_(False)
    kept = copy.deepcopy((big, small))
    modes = [each.training for each in (*big.modules(), *small.modules())]
    flags = [each.requires_grad for each in (*big.parameters(), *small.parameters())]
    dc.distill(big, small, train=loader(*images()), out=tmp_path, **SHORT)
    assert equal(big, kept[0])
    assert equal(small, kept[1])
    assert [each.training for each in (*big.modules(), *small.modules())] == modes
    assert [each.requires_grad for each in (*big.parameters(), *small.parameters())] == flags
    assert all(each.grad is None for each in (*big.parameters(), *small.parameters()))
    assert not any(each._forward_hooks for each in (*big.modules(), *small.modules()))


def test_random_numbers_of_the_caller_are_not_disturbed(tmp_path: Path) -> None:
    torch.manual_seed(12345)
    np.random.seed(12345)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1]
    dc.distill(network(8, 1), network(3, 2), train=loader(*images()), out=tmp_path, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)


def test_the_same_call_again_skips_and_another_does_not(distilled: Any, pair: tuple, tmp_path: Path) -> None:
    val = loader(*images(seed=1), shuffle=False)
    again = dc.distill(*pair, train=loader(*images()), val=val, out=distilled.folder, **SHORT)
    assert again.run.results["steps"][0]["skipped"]
    assert equal(again.student, distilled.student)
    other = dc.distill(*pair, train=loader(*images()), val=val, out=tmp_path, **SHORT)
    assert equal(other.student, distilled.student)
    for changes in (
        {"teacher": network(8, 9)},
        {"student": network(3, 9)},
        {"train": loader(*images(seed=5))},
        {"objective": dc.KD(temperature=2)},
        {"seed": 1},
        {"epochs": 3},
    ):
        call = {"teacher": pair[0], "student": pair[1], "train": loader(*images()), "val": val, **SHORT}
        changed = dc.distill(**{**call, **changes}, out=tmp_path)
        assert not changed.run.results["steps"][0]["skipped"], changes
        assert not equal(changed.student, distilled.student), changes


def test_regression_on_a_table(tmp_path: Path) -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 3
    big = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    small = nn.Linear(4, 1)
    found = dc.distill(
        big,
        small,
        train=loader(x, y),
        val=loader(x, y, shuffle=False),
        task="regression",
        objective=0.5 * dc.RegressionKD() + 0.5 * dc.TaskLoss(),
        out=tmp_path,
        optimizer=dc.SGD(lr=0.1),
        epochs=20,
    )
    with torch.no_grad():
        error = (found.student(x).squeeze(1) - y).double()
    assert found.scores["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    assert found.scores["rmse"] < (y - y.mean()).square().mean().sqrt()
    record = found.export(tmp_path / "small.onnx", example=x[:4])
    assert record["verified"]["max_abs_diff"] < 1e-4


def test_batches_as_dicts(tmp_path: Path) -> None:
    big, small = (network(width, 1, Texts, vocabulary=20) for width in (12, 4))
    train = DataLoader(Rows(text_rows(32, 0)), batch_size=8, shuffle=True)
    val = DataLoader(Rows(text_rows(16, 1)), batch_size=8)
    found = dc.distill(big, small, train=train, val=val, task="text_classification", out=tmp_path, **SHORT)
    hits = []
    with torch.no_grad():
        for each in val:
            hits.append(found.student(each["input_ids"], each["attention_mask"]).argmax(1) == each["label"])
    assert found.scores["accuracy"] == torch.cat(hits).double().mean().item()


def test_teacher_and_student_see_images_of_two_sizes(tmp_path: Path) -> None:
    small_images, target = images(size=4)
    large_images = F.interpolate(small_images, (8, 8))
    big = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    small = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    found = dc.distill(big, small, train=loader(small_images, large_images, target), out=tmp_path, **SHORT)
    assert found.student[1].in_features == 16
    assert [each["kind"] for each in found.history] == ["train"] * 6
    assert found.export(tmp_path / "small.onnx")["parameters"] == 85


def test_teacher_and_student_see_texts_of_two_tokenizers(tmp_path: Path) -> None:
    big, small = network(12, 1, Texts, vocabulary=20), network(4, 2, Texts, vocabulary=20)
    train = DataLoader(Rows(text_rows(32, 0, student=5, teacher=12)), batch_size=8)
    found = dc.distill(big, small, train=train, task="text_classification", out=tmp_path, **SHORT)
    batch = next(iter(train))
    with torch.no_grad():
        logits = found.student(**batch["student"])
    assert logits.shape == (8, 3)
    assert json.loads((tmp_path / "01-student/task.json").read_text())["raw"]


def test_two_image_sizes_in_a_recipe(tmp_path: Path) -> None:
    """One data set, each side through its own preprocessing."""
    step = dict(PAIR["steps"][2], inputs={"model": "small", "teacher": "teacher"})
    data = {**PAIR, "task": {"use": "image_classification", "teacher_size": 12}}
    data["steps"] = [{**PAIR["steps"][0], "side": "teacher"}, step]
    made = recipe(data).run(tmp_path)
    assert made.artifact("teacher").json("model.json")["interface"]["inputs"]["image"]["shape"] == [1, 12, 12]
    assert made.artifact("student").json("model.json")["interface"]["inputs"]["image"]["shape"] == [1, 8, 8]


def test_data_and_models_by_name(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    settings: dict[str, Any] = {"budget": {"steps": 1}, "batch_size": 8, "select": "last"}
    found = dc.distill(
        "timm/resnet18",
        "mlp",
        train=dc.Digits(limit=24),
        task=dc.ImageClassification(size=32),
        out=tmp_path,
        **settings,
    )
    assert found.run.recipe.models["big"] == dc.Timm(name="resnet18")
    assert {each["step"] for each in records(tmp_path / "log.jsonl")} == {"student"}
    assert isinstance(found.student, nn.Module)


def test_an_artifact_teaches(distilled: Any, tmp_path: Path) -> None:
    made = recipe().run(tmp_path / "recipe")
    found = dc.distill(
        made.artifact("teacher"),
        dc.MLP(hidden=(8,)),
        train=dc.Digits(limit=200),
        out=tmp_path / "more",
        seed=0,
        budget={"steps": 6},
        batch_size=16,
    )
    assert found.run.recipe.models["big"].path == made.artifact("teacher").folder
    assert 0 <= found.scores["accuracy"] <= 1


def test_the_student_alone_is_trained_too(pair: tuple, tmp_path: Path) -> None:
    found = dc.distill(
        *pair,
        train=loader(*images()),
        out=tmp_path,
        alone=True,
        objective=dc.TaskLoss(),
        **SHORT,
    )
    alone, student = (found.run.artifact(name).file("model.safetensors") for name in ("student_alone", "student"))
    assert alone.read_bytes() == student.read_bytes()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"train": []}, DataError, "gave no batch"),
        ({"teacher": "resnet18"}, RecipeError, "timm/resnet18"),
        ({"task": "image_clasification"}, RecipeError, r"task\.use: .*did you mean image_classification"),
        ({"epoch": 3}, RecipeError, "did you mean epochs"),
        ({"augmet": False}, RecipeError, "did you mean augment"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(36, 7))}, RecipeError, "7"),
        ({"student": 3}, RecipeError, "student: 3 is no model"),
    ],
)
def test_errors_name_what_is_wrong(pair: tuple, changes: dict, error: type, words: str, tmp_path: Path) -> None:
    call = {"teacher": pair[0], "student": pair[1], "train": loader(*images()), "out": tmp_path / "run", "epochs": 1}
    with pytest.raises(error, match=words):
        dc.distill(**{**call, **changes})


# export and benchmark of any module


def test_any_module_is_exported_and_measured(pair: tuple, tmp_path: Path) -> None:
    x, _ = images(8)
    record = dc.export(pair[1], tmp_path / "small.onnx", example=x)
    assert set(record) >= {"artifact", "parameters", "macs", "file_bytes", "verified"}
    assert record["parameters"] == sum(each.numel() for each in pair[1].parameters())
    dc.export(pair[0], tmp_path / "big.onnx", example=x)
    files = {name: tmp_path / f"{name}.onnx" for name in ("big", "small")}
    found = dc.benchmark(files, repeats=5, warmup=1)
    assert list(found) == ["big", "small"]
    for name, each in found.items():
        assert each["file_bytes"] == files[name].stat().st_size
        assert 0 < each["latency"]["p50_ms"] <= each["latency"]["p99_ms"]


def test_an_export_that_differs_leaves_nothing(pair: tuple, tmp_path: Path) -> None:
    x, _ = images(8)
    with pytest.raises(dc.DecoctError, match="tolerance"):
        dc.export(pair[1], tmp_path / "small.onnx", example=x, tolerance=0.0)
    with pytest.raises(RecipeError, match="example"):
        dc.export(pair[1], tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_scores_and_the_loss(distilled: Any) -> None:
    html = distilled._repr_html_()
    assert f"{100 * distilled.scores['accuracy']:.1f} %" in html
    assert html.count("<polyline") == 1
    assert "<table>" in distilled.run._repr_html_()
