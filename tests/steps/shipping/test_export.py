"""Export: the file says what torch says on real samples, or nothing is left."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.data.base import Dataset, Split
from decoct.data.digits import Digits
from decoct.errors import DecoctError, IntegrityError
from decoct.models.mlp import MLP
from decoct.models.saving import load_model, save_model
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import Needs
from decoct.steps.base import Context
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.shipping.export import Export, compare, verification
from decoct.steps.train_estimator import TrainEstimator
from decoct.targets.base import Session
from decoct.targets.onnx import Onnx
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression
from decoct.teachers.onnx import OnnxTeacher
from shipped import written


def room(folder: Path, task: object, data: Dataset, name: str = "student") -> Context:
    return Context(
        task=task.resolve(data), data=data, name=name, folder=folder / name, work=folder / "work", seed=0, run_seed=5
    )


def digits(folder: Path, name: str = "student_onnx") -> Context:
    return room(folder, ImageClassification(), Digits().open(), name)


def diabetes(folder: Path, name: str = "student_onnx") -> Context:
    x, y = load_diabetes(return_X_y=True)
    whole = Split({"features": x, "value": y}, np.arange(len(x), dtype=np.uint64))
    parts = dict(
        zip(("train", "validation", "test"), (whole.take(part) for part in np.array_split(np.arange(len(x)), 3)))
    )
    return room(folder, Regression(), Dataset(parts, "d" * 64), name)


def saved(context: Context, spec: object, seed: int = 0) -> Artifact:
    """A model with random weights and moved batch statistics, as a training step saves it."""
    torch.manual_seed(seed)
    interface = context.task.reading("student").interface
    module = spec.build(interface)
    for _ in range(2):
        module(torch.randn(8, *interface.shape))
    folder = context.folder.with_name(f"model-{seed}")
    with writing(folder, kind="model", name="student", meta={"side": "student", "seed": seed}) as draft:
        save_model(draft, module.eval(), spec, interface, side="student")
        draft.scores["accuracy"] = 0.5
    return Artifact.load(folder)


def answers(artifact: Artifact, context: Context) -> np.ndarray:
    with OnnxTeacher(threads=1).open(artifact, context.task.reading("teacher"), Needs()) as predict:
        return np.concatenate([predict(batch).logits.numpy() for batch in evaluation_batches(context, "test")])


@pytest.mark.parametrize(("make", "spec"), [(digits, SmallResNet(width=4)), (diabetes, MLP(hidden=(8,)))])
def test_file_answers_as_the_model_on_the_whole_test_split(tmp_path: Path, make: object, spec: object) -> None:
    context = make(tmp_path)
    source = saved(context, spec)
    artifact = Export(name="student_onnx", samples=40).run({"model": source}, context)
    model = load_model(source)
    with torch.no_grad():
        expected = torch.cat(
            [
                context.task.forward(model, batch, Needs(), "student").logits
                for batch in evaluation_batches(context, "test")
            ]
        ).numpy()
    np.testing.assert_allclose(answers(artifact, context), expected, atol=1e-4)
    record = artifact.json("exported.json")
    assert record["verified"]["max_abs_diff"] <= 1e-4
    assert record["verified"]["agreement"] == 1.0
    assert record["verified"]["samples"] == 40
    assert record["parameters"] == sum(p.numel() for p in model.module.parameters())
    assert record["file_bytes"] == artifact.file("model.onnx").stat().st_size
    assert (record["opset"], record["source"], record["side"]) == (20, "student", "student")
    assert record["inputs"][0]["shape"][0] == "batch"
    assert (artifact.kind, artifact.meta["seed"], artifact.meta["macs"]) == ("exported", 0, record["macs"])
    assert artifact.meta["verified"] == record["verified"]


def test_macs_of_a_perceptron(tmp_path: Path) -> None:
    context = diabetes(tmp_path)
    artifact = Export(name="student_onnx").run({"model": saved(context, MLP(hidden=(8, 6)))}, context)
    assert artifact.meta["macs"] == 10 * 8 + 8 * 6 + 6 * 1


def test_same_weights_give_the_same_file(tmp_path: Path) -> None:
    context, other = diabetes(tmp_path, "one"), diabetes(tmp_path, "two")
    source = saved(context, MLP(hidden=(8,)))
    first = Export(name="one").run({"model": source}, context)
    second = Export(name="two").run({"model": source}, other)
    assert first.file("model.onnx").read_bytes() == second.file("model.onnx").read_bytes()


class Crooked(Onnx):
    """A format whose files are wrong by a little."""

    use: ClassVar[str] = "crooked"
    error: str = "0.01"

    def load(self, path: Path, *, threads: int = 1) -> Session:
        session = super().load(path, threads=threads)
        return lambda feed: {name: value + np.float32(float(self.error)) for name, value in session(feed).items()}


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_file_that_differs_is_refused_and_nothing_is_left(tmp_path: Path, error: float) -> None:
    context = digits(tmp_path)
    source = saved(context, SmallResNet(width=4))
    with pytest.raises(IntegrityError, match="differs from torch"):
        Export(name="student_onnx", target=Crooked(error=str(error))).run({"model": source}, context)
    assert not context.folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model-0"]
    if error == 0.01:
        Export(name="student_onnx", target=Onnx(), tolerance=0.02).run({"model": source}, context)


def test_an_estimator_is_shipped_as_it_is(tmp_path: Path) -> None:
    context = diabetes(tmp_path)
    estimator = {"use": "random_forest", "n_estimators": 5}
    source = TrainEstimator(name="teacher", estimator=estimator).run({}, diabetes(tmp_path, "teacher"))
    artifact = Export(name="student_onnx").run({"model": source}, context)
    shipped, own = (onnx.load(str(each.file("model.onnx"))) for each in (artifact, source))
    assert [each.key for each in shipped.metadata_props] == ["decoct"]
    del shipped.metadata_props[:]
    assert shipped == own
    assert artifact.meta["parameters"] == source.meta["parameters"]
    assert artifact.meta["macs"] is None
    assert artifact.meta["verified"] == source.meta["verified"]


def test_a_damaged_source_is_named(tmp_path: Path) -> None:
    context = diabetes(tmp_path)
    source = saved(context, MLP(hidden=(8,)))
    (source.folder / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(DecoctError, match=r"safetensors|model-0"):
        Export(name="student_onnx").run({"model": source}, context)
    assert not context.folder.exists()


def test_modules_are_left_alone(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    written(Onnx(), module, {"input": torch.zeros(2, 4)}, tmp_path, {"input": {0: "batch"}})
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("wrong_at", [1, 20])
def test_a_file_is_tried_on_whole_batches_and_on_one_sample(tmp_path: Path, wrong_at: int) -> None:
    """It answers otherwise in calls of one size alone."""
    context = digits(tmp_path)
    torch.manual_seed(0)
    reading = context.task.reading("student")
    program = reading.program(MLP(hidden=(4,)).build(reading.interface)).eval()

    def session(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (x,) = feed.values()
        with torch.no_grad():
            outputs = program(torch.from_numpy(x)).numpy()
        return {"logits": outputs + 0.5 * (len(x) == wrong_at)}

    batches = verification(context, 20)
    assert sum(map(len, batches)) == 20
    found = compare(program, session, [reading.feed(each) for each in batches], reading.outputs)
    assert found.max_abs_diff == pytest.approx(0.5, abs=1e-6)
    assert found.samples == 20
    assert found.mean == pytest.approx(0.5 * wrong_at / 21, abs=1e-6)


def test_the_tolerance_is_the_most_that_a_file_may_differ_by(tmp_path: Path) -> None:
    """The file is 0.01 off, give or take a rounding of float32."""
    context = digits(tmp_path)
    source = saved(context, MLP(hidden=(4,)))
    target = Crooked(error="0.01")
    with pytest.raises(IntegrityError, match=r"differs from torch by 0.01 on 8 real samples; tolerance is 0.0099"):
        Export(name="student_onnx", target=target, tolerance=0.0099, samples=8).run({"model": source}, context)
    made = Export(name="student_onnx", target=target, tolerance=0.0101, samples=8).run({"model": source}, context)
    assert made.json("exported.json")["verified"]["max_abs_diff"] == pytest.approx(0.01, rel=1e-3)
