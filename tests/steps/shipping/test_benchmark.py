"""Benchmark: figures come from the files, several seeds are joined as statistics say, and the record is whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix

from decoct.artifact import Artifact, writing
from decoct.data.base import Dataset, Split
from decoct.data.digits import Digits
from decoct.errors import RecipeError
from decoct.meters.interval import interval
from decoct.models.mlp import MLP
from decoct.models.onnx_file import open_session
from decoct.models.saving import save_model
from decoct.models.small_resnet import SmallResNet
from decoct.runner.keys import key_of
from decoct.steps.base import Context
from decoct.steps.shipping.benchmark import Benchmark, finite
from decoct.steps.shipping.compared import compared
from decoct.steps.shipping.export import Export
from decoct.steps.train_estimator import TrainEstimator
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.regression import Regression

QUICK = {"repeats": 20, "warmup": 2}


def context(task: object, data: Dataset, folder: Path) -> Context:
    return Context(task=task.resolve(data), data=data, name=folder.name, folder=folder, work=folder / ".work", seed=0)


def model(room: Context, spec: object, folder: Path, seed: int) -> Artifact:
    torch.manual_seed(seed)
    interface = room.task.reading("student").interface
    module = spec.build(interface).eval()
    with writing(folder, kind="model", name=folder.name, meta={"side": "student", "seed": seed}) as draft:
        save_model(draft, module, spec, interface, side="student")
    return Artifact.load(folder)


def exported(room: Context, source: Artifact, folder: Path) -> Artifact:
    return Export(name=folder.name, samples=16).run({"model": source}, context(room.task, room.data, folder))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, dict[str, list[Artifact]], Path]:
    """A teacher, and two students of two seeds each, exported."""
    folder = tmp_path_factory.mktemp("digits")
    room = context(ImageClassification(), Digits().open(), folder / "records")
    teacher = exported(room, model(room, SmallResNet(width=4), folder / "t", 0), folder / "05-teacher_onnx")
    found: dict[str, list[Artifact]] = {"teacher": [teacher]}
    for name, start in (("student_alone", 10), ("student", 20)):
        found[name] = []
        for seed in (0, 1):
            source = model(room, SmallResNet(width=2), folder / f"{name}-{seed}", start + seed)
            artifact = exported(room, source, folder / f"{name}_onnx-{seed}")
            meta = {**artifact.meta, "seed": seed}
            found[name].append(Artifact(artifact.folder, artifact.kind, artifact.name, meta=meta))
    return room, found, folder


@pytest.fixture(scope="module")
def records(digits: tuple[Context, dict[str, list[Artifact]], Path]) -> dict[str, dict]:
    room, inputs, folder = digits
    artifact = Benchmark(**QUICK).run(inputs, context(room.task, room.data, folder / "07-benchmark"))
    assert artifact.kind == "records"
    text = artifact.file("records.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return {"all": found, **{each["name"]: each for each in found["models"]}}


def test_quality_is_that_of_the_file(digits: tuple, records: dict) -> None:
    room, inputs, _ = digits
    test = room.data.splits["test"]
    images, labels = test.columns["image"].transpose(0, 3, 1, 2), test.columns["label"]
    predicted = [
        open_session(each.file("model.onnx"))({"image": images})["logits"].argmax(1) for each in inputs["student"]
    ]
    each = [accuracy_score(labels, one) for one in predicted]
    record = records["student"]
    assert record["quality"]["accuracy"] == pytest.approx(np.mean(each))
    assert record["quality_sd"]["accuracy"] == pytest.approx(np.std(each, ddof=1))
    assert [one["quality"]["accuracy"] for one in record["per_seed"]] == pytest.approx(each)
    assert (record["seeds"], record["n"], record["split"]) == ([0, 1], len(test), "test")
    assert record["confusion"]["matrix"] == confusion_matrix(labels, predicted[0], labels=range(10)).tolist()
    teacher = open_session(inputs["teacher"][0].file("model.onnx"))({"image": images})["logits"].argmax(1)
    assert record["fidelity"]["agreement"] == pytest.approx(np.mean([(one == teacher).mean() for one in predicted]))
    assert records["teacher"]["fidelity"] == {}
    assert records["teacher"]["quality_sd"] == {}
    assert "ece" in record["calibration"]
    assert "ece" not in record["quality"]


def test_costs_and_latency(digits: tuple, records: dict) -> None:
    _, inputs, _ = digits
    for name, artifacts in inputs.items():
        record, artifact = records[name], artifacts[0]
        assert record["file_bytes"] == artifact.file("model.onnx").stat().st_size
        assert (record["parameters"], record["macs"]) == (artifact.meta["parameters"], artifact.meta["macs"])
        assert record["verified"] == artifact.meta["verified"]
        assert record["path"] == artifact.folder.name
        assert record["artifact"] == f"{artifact.folder.name}/model.onnx"
        assert record["peak_memory_bytes"] > 0
        latency = record["latency"]
        assert (latency["runtime"], latency["threads"], latency["batch"], latency["repeats"]) == (
            "onnxruntime",
            1,
            1,
            20,
        )
        assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p99_ms"]
        assert latency["throughput_per_s"] == pytest.approx(1e3 / latency["mean_ms"])
    assert records["all"]["machine"]["cpu"]


def test_comparison_is_paired_over_seeds(records: dict) -> None:
    (found,) = records["all"]["comparisons"]
    ours, theirs = (
        [each["quality"]["accuracy"] for each in records[name]["per_seed"]] for name in ("student", "student_alone")
    )
    assert found["differences"] == pytest.approx(np.subtract(ours, theirs).tolist())
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert (found["better"], found["than"], found["n"], found["level"]) == ("student", "student_alone", 2, 0.95)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12).filter(lambda each: np.std(each) > 1e-6))
def test_interval_is_scipys(differences: list[float]) -> None:
    expected = stats.t.interval(0.95, len(differences) - 1, loc=np.mean(differences), scale=stats.sem(differences))
    assert interval(differences) == pytest.approx(expected)


def test_equal_differences_have_an_interval_of_no_width() -> None:
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_gain_turns_with_the_metric() -> None:
    def record(name: str, values: list[float]) -> dict:
        return {"name": name, "per_seed": [{"seed": i, "quality": {"rmse": v}} for i, v in enumerate(values)]}

    found = compared(record("student", [1.0, 2.0]), record("student_alone", [2.0, 4.0, 9.0]), ("rmse", "min"))
    assert found["differences"] == [-1.0, -2.0]
    assert found["gain"] == {"mean": 1.5, "low": -found["high"], "high": -found["low"]}
    one = compared(record("student", [1.0]), record("student_alone", [2.0]), ("rmse", "min"))
    assert (one["mean"], one["low"], one["high"], one["note"]) == (-1.0, None, None, "one seed")


def test_unlike_kinds_side_by_side(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 4))
    whole = Split({"features": x, "value": x[:, 0] + 0.1 * x[:, 1]}, np.arange(300, dtype=np.uint64))
    parts = dict(zip(("train", "validation", "test"), (whole.take(part) for part in np.array_split(np.arange(300), 3))))
    room = context(Regression(), Dataset(parts, "e" * 64), tmp_path / "records")
    estimator = {"use": "random_forest", "n_estimators": 20}
    teacher = TrainEstimator(name="teacher", estimator=estimator).run({}, context(room.task, room.data, tmp_path / "t"))
    alone = model(room, MLP(hidden=(8,)), tmp_path / "student", 0)
    threads = torch.get_num_threads()
    done = Benchmark(**QUICK, batch=7, threads=2).run({"teacher": teacher, "student": alone}, room)
    assert torch.get_num_threads() == threads
    found = {each["name"]: each for each in done.json("records.json")["models"]}
    assert found["student"]["latency"]["runtime"] == "torch"
    assert found["student"]["peak_memory_bytes"] is None
    assert found["student"]["verified"] == {}
    assert found["student"]["macs"] == 4 * 8 + 8
    assert found["student"]["latency"]["shapes"] == {"features": [7, 4]}
    assert found["teacher"]["latency"]["runtime"] == "onnxruntime"
    assert found["teacher"]["macs"] is None
    assert found["teacher"]["quality"]["rmse"] < found["student"]["quality"]["rmse"]
    assert "rmse_to_teacher" in found["student"]["fidelity"]
    assert found["teacher"]["confusion"] is None
    assert done.json("records.json")["comparisons"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reference": "techer"}, "teacher"),
        ({"compare": [["student", "studen_alone"]]}, "student_alone"),
        ({"split": "tset"}, "test"),
        ({"batch": 100_000}, "batch is 100000"),
    ],
)
def test_wrong_settings_name_the_right_one(digits: tuple, options: dict, words: str) -> None:
    room, inputs, folder = digits
    first = {name: artifacts[0] for name, artifacts in inputs.items()}
    with pytest.raises(ValueError, match=words):
        Benchmark(**QUICK, **options).run(first, context(room.task, room.data, folder / "wrong"))
    assert not (folder / "wrong").exists()


def test_a_model_spec_is_no_artifact(digits: tuple) -> None:
    room, _, folder = digits
    with pytest.raises(RecipeError, match="no artifact"):
        Benchmark(**QUICK).run({"teacher": SmallResNet()}, context(room.task, room.data, folder / "wrong"))


def test_finite_leaves_plain_json() -> None:
    value = {"a": math.nan, "b": (np.float32(1.5), np.int64(2), math.inf), "c": None, 3: "x"}
    assert finite(value) == {"a": None, "b": [1.5, 2, None], "c": None, "3": "x"}


def test_samples_shown_are_those_on_which_the_files_differ(digits: tuple, records: dict) -> None:
    room, inputs, folder = digits
    test = room.data.splits["test"]
    images = test.columns["image"].transpose(0, 3, 1, 2)
    said, taught = (
        open_session(inputs[name][0].file("model.onnx"))({"image": images})["logits"] for name in ("student", "teacher")
    )
    found = records["all"]["examples"]
    assert (found["model"], found["reference"], found["split"]) == ("student", "teacher", "test")
    assert found["apart"] == (said.argmax(1) != taught.argmax(1)).sum()
    assert len(found["items"]) == min(12, found["apart"])
    for each in found["items"]:
        i = each["index"]
        assert each["model"]["class"] == str(said[i].argmax())
        assert each["reference"]["class"] == str(taught[i].argmax())
        assert each["true"] == str(test.columns["label"][i])
        assert each["shown"]["image"].startswith("data:image/png;base64,")
    silent = Benchmark(**QUICK, examples=0).run(inputs, context(room.task, room.data, folder / "09-silent"))
    assert "examples" not in silent.json("records.json", dict)


def test_average_precision_of_each_class_is_that_of_the_file(digits: tuple, records: dict) -> None:
    room, inputs, _ = digits
    test = room.data.splits["test"]
    images, labels = test.columns["image"].transpose(0, 3, 1, 2), test.columns["label"]
    logits = open_session(inputs["student"][0].file("model.onnx"))({"image": images})["logits"].astype(np.float64)
    shares = softmax(logits, axis=1)
    expected = [average_precision_score(labels == c, shares[:, c]) for c in range(10)]
    found = records["student"]["classes"]
    assert [each["average_precision"] for each in found] == pytest.approx(expected, rel=1e-9)


def test_showing_samples_by_default_leaves_the_keys_of_before(digits: tuple) -> None:
    room, inputs, _ = digits
    values = {name: list(each) for name, each in inputs.items()}
    plain = key_of(Benchmark(), values, room.data, room.task, 0)
    assert key_of(Benchmark(examples=12), values, room.data, room.task, 0) == plain
    assert key_of(Benchmark(examples=0), values, room.data, room.task, 0) != plain
