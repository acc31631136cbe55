"""Quantize: a file in integers, compared with the float model on real samples, or nothing."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.errors import BudgetMissed, DataError, RecipeError
from decoct.models.mlp import MLP
from decoct.models.onnx_file import open_session
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet
from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.report.records import ModelRecord
from decoct.steps.base import Context
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.shipping.benchmark import Benchmark
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.parity import differences
from decoct.steps.shipping.quantize import Quantize
from decoct.tasks.image_classification import ImageClassification


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits().open()


def room(folder: Path, data: Dataset, name: str = "student_int8") -> Context:
    task = ImageClassification().resolve(data)
    return Context(task=task, data=data, name=name, folder=folder / name, work=folder / "work", seed=0, run_seed=5)


def saved(context: Context, spec: object = SmallResNet(width=8)) -> Artifact:
    """A model after a few passes over real images, as a training step saves it."""
    torch.manual_seed(0)
    interface = context.task.reading("student").interface
    module = spec.build(interface)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    prepared = context.task.reading("student").preprocessing()
    for _ in range(2):
        for batch in evaluation_batches(context, "train"):
            loss = nn.functional.cross_entropy(module(prepared(batch.side("student"))), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = context.folder.with_name("model")
    with writing(folder, kind="model", name="student", meta={"side": "student", "seed": 0}) as draft:
        save_model(draft, module.eval(), spec, interface, side="student")
        draft.scores["accuracy"] = 0.5
    return Artifact.load(folder)


def answers(path: Path, context: Context) -> np.ndarray:
    session = open_session(path)
    feeds = [context.task.reading("student").feed(batch) for batch in evaluation_batches(context, "test")]
    return np.concatenate([session(feed)["logits"] for feed in feeds])


def test_file_in_integers_answers_as_the_model(tmp_path: Path, data: Dataset) -> None:
    context = room(tmp_path, data)
    source = saved(context)
    artifact = Quantize(name="student_int8", samples=100).run({"model": source}, context)
    program = context.task.reading("student").program(load_model(source).module).eval()
    feeds = [context.task.reading("student").feed(batch) for batch in evaluation_batches(context, "test")]
    with torch.no_grad():
        expected = np.concatenate([program(image=torch.from_numpy(feed["image"])).numpy() for feed in feeds])
    found = answers(artifact.file("model.onnx"), context)
    record = artifact.json("exported.json")
    assert record["verified"]["max_abs_diff"] == pytest.approx(np.abs(found - expected)[:100].max(), rel=1e-4)
    assert record["verified"]["mean_abs_diff"] == pytest.approx(np.abs(found - expected)[:100].mean(), rel=1e-4)
    assert record["verified"]["agreement"] == (found.argmax(1) == expected.argmax(1))[:100].mean()
    assert record["verified"]["agreement"] >= 0.97
    assert record["verified"]["samples"] == 100
    assert record["verified"]["max_abs_diff"] > 0
    assert record["audit"]["float"] == 0
    assert record["audit"]["int8"] == 10
    assert record["file_bytes"] == artifact.file("model.onnx").stat().st_size < 0.6 * record["float_bytes"]
    assert record["quantization"]["calibration"] == {"split": "train", "samples": 256}
    assert {each["after"] for each in record["quantization"]["changes"]} == {8}
    assert record["verified"]["against"] == "float"
    assert artifact.meta["verified"] == {key: value for key, value in record["verified"].items() if key != "against"}
    split = context.data.splits["validation"]
    truth = np.concatenate([each.target for each in evaluation_batches(context, "validation")])
    session = open_session(artifact.file("model.onnx"))
    feeds = [context.task.reading("student").feed(each) for each in evaluation_batches(context, "validation")]
    right = np.concatenate([session(feed)["logits"].argmax(1) for feed in feeds]) == truth
    assert len(right) == len(split)
    assert artifact.scores["accuracy"] == pytest.approx(right.mean()) != source.scores["accuracy"]


def test_it_is_measured_as_an_exported_file_is(tmp_path: Path, data: Dataset) -> None:
    context = room(tmp_path, data)
    source = saved(context)
    floating = Export(name="student").run({"model": source}, replace(context, folder=tmp_path / "float"))
    integers = Quantize(name="student_int8").run({"model": floating}, context)
    measured = Benchmark(repeats=3, reference="student").run(
        {"student": floating, "student_int8": integers}, replace(context, folder=tmp_path / "benchmark")
    )
    for each in measured.json("records.json")["models"]:
        ModelRecord.model_validate(each)
    models = {each["name"]: each for each in measured.json("records.json")["models"]}
    assert models["student_int8"]["file_bytes"] < models["student"]["file_bytes"]
    assert models["student_int8"]["fidelity"]["agreement"] >= 0.97
    assert models["student_int8"]["macs"] == models["student"]["macs"] > 0
    with pytest.raises(RecipeError, match="quantized already"):
        Quantize(name="again").run({"model": integers}, replace(context, folder=tmp_path / "again"))


def test_a_budget_that_is_missed_leaves_nothing(tmp_path: Path, data: Dataset) -> None:
    context = room(tmp_path, data)
    source = saved(context, MLP(hidden=(8,)))
    with pytest.raises(BudgetMissed, match="max_size_bytes: the file takes"):
        Quantize(name="student_int8", max_size_bytes=1000).run({"model": source}, context)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    made = Quantize(name="student_int8", max_size_bytes=100_000, min_quality=0.1).run({"model": source}, context)
    record = made.json("exported.json")
    assert record["budgets"]["max_size_bytes"]["measured"] == record["file_bytes"]
    session = open_session(made.file("model.onnx"))
    right = [
        session(context.task.reading("student").feed(batch))["logits"].argmax(1) == batch.target.numpy()
        for batch in evaluation_batches(context, "validation")
    ]
    assert record["budgets"]["min_quality"]["measured"] == pytest.approx(np.concatenate(right).mean())


def test_test_data_never_calibrate() -> None:
    with pytest.raises(RecipeError, match="test data may not calibrate"):
        Quantize(name="q", calibration_split="test")
    with pytest.raises(RecipeError, match="no split to calibrate on"):
        Quantize(name="q", calibration_split="valid")


def test_without_calibration_data_nothing_is_left(tmp_path: Path, data: Dataset) -> None:
    context = room(tmp_path, data)
    source = saved(context, MLP(hidden=(8,)))
    splits = {**data.splits, "train": data.splits["train"].take(np.arange(0))}
    with pytest.raises(DataError, match="no samples in split 'train'"):
        Quantize(name="student_int8").run({"model": source}, replace(context, data=replace(data, splits=splits)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_calibration_sees_a_draw_of_training_data_alone(tmp_path: Path, data: Dataset) -> None:
    context = room(tmp_path, data)
    source = saved(context, MLP(hidden=(8,)))
    seen: list[np.ndarray] = []

    class Looking(Quantization):
        """Looks at what it is given."""

        use: ClassVar[str] = "looking"
        calibrates: ClassVar[bool] = True

        def quantize(self, graph: onnx.ModelProto, feeds: Feeds | None, judge: Judge | None) -> Quantized:
            seen.append(np.concatenate([feed["image"] for feed in feeds()]))
            seen.append(np.concatenate([feed["image"] for feed in feeds()]))
            seen.append(judge(graph))
            return Quantized(graph, facts={"a": 1})

    Quantize(name="student_int8", scheme=Looking(), calibration_samples=70).run({"model": source}, context)
    np.testing.assert_array_equal(seen[0], seen[1])
    train = np.moveaxis(data.splits["train"].columns["image"], -1, 1)
    known = {image.tobytes() for image in train}
    assert len(seen[0]) == 70
    assert all(image.tobytes() in known for image in seen[0])
    assert not np.array_equal(seen[0], train[:70])
    path = source.folder.parent / "student_int8" / "model.onnx"
    session = open_session(path)
    answers = [
        (session(context.task.reading("student").feed(batch))["logits"].argmax(1), batch.target.numpy())
        for batch in evaluation_batches(context, "validation")
    ]
    accuracy = np.mean(np.concatenate([found == target for found, target in answers]))
    assert seen[2] == pytest.approx(accuracy)


def test_differences_of_numbers_count_in_standard_deviations() -> None:
    expected = np.array([[0.0], [2.0], [4.0], [6.0]])
    found = expected + np.array([[0.1], [0.0], [-0.3], [0.2]])
    record = differences(found, expected, kind="numbers")
    sd = np.std([0, 2, 4, 6])
    assert record["max_abs_diff"] == pytest.approx(0.3 / sd)
    assert record["agreement"] == 0.75
    assert record["sqnr_db"] == pytest.approx(10 * np.log10(56 / 0.14))
