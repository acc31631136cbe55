"""A task whose file gives two outputs goes through export, integers and benchmark."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from decoct.artifact import Artifact, writing
from decoct.data.digits import Digits
from decoct.models.calls import Postprocessing, logits_of
from decoct.models.interface import Port
from decoct.models.onnx_file import open_session
from decoct.models.saving import save_model
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import DENSE
from decoct.steps.base import Context
from decoct.steps.learning.batches import evaluation_batches
from decoct.steps.shipping.benchmark import Benchmark
from decoct.steps.shipping.export import Export
from decoct.steps.shipping.quantize import Quantize
from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.classes import OneClass
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.images import Images
from decoct.teachers.onnx import OnnxTeacher


class Both(nn.Module):
    """Logits, and the class that they say."""

    def forward(self, raw: Any) -> tuple[Tensor, Tensor]:
        logits = logits_of(raw)
        return logits, logits.argmax(-1)


class Told(OneClass):
    """Classes whose file also gives the id of the class."""

    def shipped(self, inputs: Inputs) -> dict[str, Port]:
        return {**self.gives(inputs), "label": Port(kind="ids", axes={0: "batch"})}

    def postprocessing(self) -> Postprocessing | None:
        return Both()


class ToldImages(Images, Told, Joined):
    """Images with such an answer."""

    use: ClassVar[str] = "told_images"
    reads: ClassVar[type[Inputs]] = Images
    answers: ClassVar[type[Answer]] = Told


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def task() -> ToldImages:
    return ToldImages().resolve(Digits().open())


def room(root: Path, task: ToldImages, name: str) -> Context:
    return Context(
        task=task, data=Digits().open(), name=name, folder=root / name, work=root / "work", seed=0, run_seed=5
    )


@pytest.fixture(scope="module")
def model(root: Path, task: ToldImages) -> Artifact:
    torch.manual_seed(0)
    interface, spec = task.reading("student").interface, SmallResNet(width=8)
    module, prepared = spec.build(interface), task.reading("student").preprocessing()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for batch in evaluation_batches(room(root, task, "model"), "train"):
        loss = nn.functional.cross_entropy(module(prepared(batch.side("student"))), batch.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with writing(root / "model", kind="model", name="student", meta={"side": "student", "seed": 0}) as draft:
        save_model(draft, module.eval(), spec, interface, side="student")
        draft.scores["accuracy"] = 0.5
    return Artifact.load(root / "model")


@pytest.fixture(scope="module")
def exported(root: Path, task: ToldImages, model: Artifact) -> Artifact:
    return Export(name="floating").run({"model": model}, room(root, task, "floating"))


def predicted(artifact: Artifact, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and labels of a file on the test split, and the truth."""
    session, reading = open_session(artifact.file("model.onnx")), context.task.reading("student")
    batches = list(evaluation_batches(context, "test"))
    found = [session(reading.feed(batch)) for batch in batches]
    return (
        np.concatenate([each["logits"] for each in found]),
        np.concatenate([each["label"] for each in found]),
        np.concatenate([batch.target.numpy() for batch in batches]),
    )


def test_the_file_gives_both_and_says_so(root: Path, task: ToldImages, exported: Artifact) -> None:
    logits, labels, _ = predicted(exported, room(root, task, "x"))
    assert labels.dtype == np.int64
    assert (labels == logits.argmax(1)).all()
    record = exported.json("exported.json")
    assert (record["output"], record["outputs"]) == ("logits", ["logits", "label"])
    assert record["verified"]["agreement"] == 1.0
    assert record["verified"]["max_abs_diff"] < 1e-4
    with OnnxTeacher().open(exported, task.reading("student"), DENSE) as predict:
        batch = next(iter(evaluation_batches(room(root, task, "x"), "test")))
        np.testing.assert_allclose(predict(batch).logits.numpy(), logits[: len(batch)], atol=1e-5)


def test_the_file_in_integers_does_too(root: Path, task: ToldImages, exported: Artifact) -> None:
    context = room(root, task, "integers")
    artifact = Quantize(name="integers", samples=100).run({"model": exported}, context)
    logits, labels, truth = predicted(artifact, context)
    assert (labels == logits.argmax(1)).all()
    floating, _, _ = predicted(exported, context)
    assert (labels == floating.argmax(1)).mean() > 0.9
    assert artifact.json("exported.json")["audit"]["int8"] > 0
    measured = Benchmark(repeats=3, reference="floating").run(
        {"floating": exported, "integers": artifact}, room(root, task, "benchmark")
    )
    models = {each["name"]: each for each in measured.json("records.json")["models"]}
    assert models["integers"]["quality"]["accuracy"] == accuracy_score(truth, labels)
    assert models["floating"]["quality"]["accuracy"] == accuracy_score(truth, floating.argmax(1))
    agreement = (labels == floating.argmax(1)).mean()
    assert models["integers"]["fidelity"]["agreement"] == pytest.approx(agreement)
