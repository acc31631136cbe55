"""The label step: what a store holds is what the teacher says, and what cannot be is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoct.artifact import Artifact, read_manifest
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.views import seen_of
from decoct.errors import DataError, RecipeError, ResourceError
from decoct.models.given import given_model
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import Needs, Outputs
from decoct.steps.distill import Distill
from decoct.steps.labelling.answers import Answers, pieces_of
from decoct.steps.train import Train
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.reading import Store
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.mixing.base import Mixing
from decoct.tasks.mixing.cutmix import CutMix
from decoct.tasks.mixing.mixup import Mixup
from decoct.training.budget import Budget
from label_toys import CROP, EXACT, SHORT, Net, context, done, given, label, table, texts


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=100).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification(augment=CROP).resolve(data)


@pytest.fixture(scope="module")
def teacher(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("teacher")
    return done(Train(name="teacher", **SHORT), {"model": SmallResNet(width=4)}, folder, data, task)


# What a store holds.


@pytest.mark.parametrize("mix", [None, Mixup(alpha=0.4), CutMix(alpha=1.0), Mixup(alpha=1.0, probability=0.5)])
@pytest.mark.parametrize("augment", [True, False])
def test_the_store_says_what_the_teacher_says_about_these_pixels(
    mix: Mixing | None, augment: bool, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    """In batches of another size, order and mixture of views, bit for bit."""
    views = {"count": 3, "seed": 5} if augment or mix is not None else None
    step = label(views=views, mix=mix, augment=augment, features=("stem.0",), features_dtype="float32")
    made = done(step, {"teacher": teacher}, tmp_path, data, task)
    store, network = Store.open(made.folder), load_model(teacher)
    split, count = data.splits["train"], 3 if views else 1
    assert len(store) == len(split) * count == made.meta["statistics"]["rows"]
    answers = Answers(step, {"teacher": teacher}, context(tmp_path, data, task, "again"))
    parts = [part for piece in pieces_of(step, context(tmp_path, data, task, "again")) for part in piece.parts]
    pairs = [(part.view, index) for part in parts for index in part.indices.tolist()]
    np.random.default_rng(0).shuffle(pairs)
    collate, looks = answers._collates["train"], answers._looks
    for start in range(0, len(pairs), 7):
        chosen = np.array(pairs[start : start + 7] if len(pairs) - start > 7 else pairs[-7:])
        numbers, indices = chosen[:, 0].astype(np.uint64), chosen[:, 1]
        seeds = looks.views.seeds(numbers, split.keys[indices]) if looks.augment else None
        batch = collate(split, indices, seeds=seeds, view=numbers)
        with torch.no_grad():
            outputs = task.forward(network, batch, Needs(features=frozenset({"stem.0"})), "teacher")
        read = store.read(seen_of(batch))
        assert torch.equal(read.logits, outputs.logits)
        assert torch.equal(read.features["stem.0"], outputs.features["stem.0"])
    answers.close()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2.0**-11), ("uint8", 1 / 508)])
def test_codecs_keep_their_bounds(
    dtype: str, bound: float, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    exact = Store.open(done(label(views=2), {"teacher": teacher}, tmp_path / "a", data, task).folder)
    coarse = done(label(views=2, keep=DenseCodec(dtype=dtype)), {"teacher": teacher}, tmp_path / "b", data, task)
    found = Store.open(coarse.folder)
    assert (found.seen == exact.seen).all()
    wanted, kept = (each.read(exact.seen).logits.double().numpy() for each in (exact, found))
    span = wanted.max(1, keepdims=True) - wanted
    allowed = bound * (span if dtype == "float16" else span.max(1, keepdims=True)) + 4e-7 * abs(wanted).max()
    assert (abs(kept - wanted) <= allowed).all()
    assert abs(kept - wanted).max() > 0
    log_p, log_q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (wanted, kept))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    assert 0 < coarse.meta["statistics"]["kl"] < 2 * kl.max()
    assert coarse.scores["kl_lost"] == coarse.meta["statistics"]["kl"]


def test_top_k_keeps_the_largest(data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path) -> None:
    exact = Store.open(done(label(views=2), {"teacher": teacher}, tmp_path / "a", data, task).folder)
    made = done(label(views=2, keep=TopKCodec(3)), {"teacher": teacher}, tmp_path / "b", data, task)
    found = Store.open(made.folder)
    top = found.read(exact.seen).top
    log_p = exact.read(exact.seen).logits.double().log_softmax(-1)
    assert (top.log_probs.double() - log_p.gather(-1, top.ids)).abs().max() < 0.05
    assert (log_p.topk(3).values - log_p.gather(-1, top.ids)).abs().max() < 0.05
    mass = log_p.topk(3).values.exp().sum(-1)
    assert made.scores["kept_mass"] == pytest.approx(mass.mean().item(), abs=0.02)


@pytest.mark.parametrize("use", ["regression", "tabular_classification", "text_classification"])
def test_every_task_can_be_labelled(use: str, tmp_path: Path) -> None:
    from decoct.tasks.regression import Regression
    from decoct.tasks.tabular_classification import TabularClassification
    from decoct.tasks.text_classification import TextClassification

    data, model, Kind = {
        "regression": (table(values=True), MLP(hidden=(5,)), Regression),
        "tabular_classification": (table(values=False), MLP(hidden=(5,)), TabularClassification),
        "text_classification": (texts(), {"use": "bilstm", "embedding": 6, "hidden": 5}, TextClassification),
    }[use]
    if isinstance(model, dict):
        from decoct.spec import Choice

        model = Choice("decoct.models").validate(model)
    problem = Kind().resolve(data)
    teacher = done(Train(name="teacher", select="last", **SHORT), {"model": model}, tmp_path, data, problem)
    made = done(
        label(splits=("train", "validation"), keep=DenseCodec() if use == "regression" else EXACT),
        {"teacher": teacher},
        tmp_path,
        data,
        problem,
    )
    store, network = Store.open(made.folder), load_model(teacher)
    for name in ("train", "validation"):
        split = data.splits[name]
        batch = problem.collate(split, np.arange(len(split))[::-1])
        with torch.no_grad():
            outputs = problem.forward(network, batch, Needs(), "teacher").logits
        torch.testing.assert_close(store.read(seen_of(batch)).logits, outputs, rtol=2e-6, atol=2e-6)
    assert made.meta["views"]["count"] == 1


def test_several_teachers_answer_as_one(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    from decoct.teachers.combinations import CATALOGUE

    modules = {"a": Net(seed=1), "b": Net(seed=2)}
    inputs = {role: given_model(role, module) for role, module in modules.items()}
    with pytest.raises(RecipeError, match=r"inputs: a, b are several teachers; say how they answer: combine"):
        done(label(), inputs, tmp_path / "none", data, task, given=modules)
    combine = CATALOGUE.resolve("average")() if "average" in CATALOGUE else CATALOGUE.resolve(sorted(CATALOGUE)[0])()
    step = label(combine=combine, views=2)
    made = done(step, inputs, tmp_path, data, task, given=modules)
    store = Store.open(made.folder)
    where = context(tmp_path, data, task, "again", given=modules)
    answers = Answers(step, inputs, where)
    for part in [part for piece in pieces_of(step, where) for part in piece.parts]:
        batch = answers.batch(part)
        assert torch.equal(store.read(seen_of(batch)).logits, answers.predict(batch).logits)
    answers.close()
    with pytest.raises(RecipeError, match="features: several teachers answer as one, which has no layers"):
        done(label(combine=combine, features=("body.1",)), inputs, tmp_path / "f", data, task, given=modules)


def test_a_teacher_that_knows_some_classes_names_them(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    from decoct.teachers.combinations import CATALOGUE

    wider = task.replace(classes=(*task.classes, "ten"))
    combine = CATALOGUE.resolve("average")() if "average" in CATALOGUE else CATALOGUE.resolve(sorted(CATALOGUE)[0])()
    for name, step, inputs in (
        ("one", label(), {"teacher": teacher}),
        ("two", label(combine=combine), {"a": teacher, "b": teacher}),
    ):
        made = done(step, inputs, tmp_path / name, data, wider)
        assert tuple(made.json("task.json")["classes"]) == task.classes
        assert Store.open(made.folder).layout.classes == 10
        student = done(
            Distill(name="student", **SHORT), {"model": MLP(hidden=(4,)), "labels": made}, tmp_path / name, data, wider
        )
        assert student.kind == "model"


@pytest.mark.parametrize("kind", ["estimator", "onnx"])
def test_estimators_and_files_are_labelled(kind: str, tmp_path: Path) -> None:
    from decoct.spec import Choice
    from decoct.steps.shipping.export import Export
    from decoct.steps.train_estimator import TrainEstimator
    from decoct.tasks.tabular_classification import TabularClassification

    data = table(values=False)
    problem = TabularClassification().resolve(data)
    if kind == "estimator":
        step = TrainEstimator(name="teacher", estimator={"use": "extra_trees", "n_estimators": 5})
        teacher: Any = done(step, {}, tmp_path, data, problem)
    else:
        model = done(Train(name="m", select="last", **SHORT), {"model": MLP(hidden=(5,))}, tmp_path, data, problem)
        exported = done(Export(name="teacher"), {"model": model}, tmp_path, data, problem)
        teacher = Choice("decoct.models").validate({"use": "onnx", "path": str(exported.file("model.onnx"))})
    step = label()
    made = done(step, {"teacher": teacher}, tmp_path, data, problem)
    store, answers = Store.open(made.folder), Answers(step, {"teacher": teacher}, context(tmp_path, data, problem, "x"))
    split = data.splits["train"]
    for indices in (np.arange(20), np.arange(19, 45)[::-1]):
        batch = problem.collate(split, indices)
        torch.testing.assert_close(store.read(batch.seen).logits, answers.predict(batch).logits, rtol=1e-6, atol=1e-6)
    answers.close()
    if kind == "onnx":
        before = made.meta["teacher"]["fingerprint"]
        moved = tmp_path / "elsewhere.onnx"
        moved.write_bytes(Path(teacher.path).read_bytes())
        again = teacher.replace(path=moved)
        assert (
            done(step, {"teacher": again}, tmp_path / "moved", data, problem).meta["teacher"]["fingerprint"] == before
        )
        other = done(Train(name="o", select="last", **SHORT), {"model": MLP(hidden=(7,))}, tmp_path, data, problem)
        file = done(Export(name="other"), {"model": other}, tmp_path, data, problem).file("model.onnx")
        moved.write_bytes(file.read_bytes())
        with pytest.raises(RecipeError, match=r"holds a store of another teacher\.fingerprint"):
            step.refuse_another({"teacher": again}, context(tmp_path, data, problem, "labels"))


def test_embeddings_are_features(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    inputs, table_ = given(net := Net())
    step = label(features=("body",), features_dtype="float16", views=2)
    made = done(step, inputs, tmp_path, data, task, given=table_)
    store = Store.open(made.folder)
    batch = task.collate(data.splits["train"], np.arange(5))
    where = context(tmp_path, data, task, "x", given=table_)
    answers = Answers(step, inputs, where)
    part = pieces_of(step, where)[1].parts[0]
    batch = answers.batch(part)
    outputs = answers.predict(batch).features["body"]
    assert torch.equal(store.read(seen_of(batch)).features["body"], outputs.half())
    answers.close()
    with torch.no_grad():
        net.body[1].weight.mul_(1e7)
        net.body[2].running_var.fill_(1e-3)
    inputs, table_ = given(net)
    with pytest.raises(
        DataError, match=r"features: body reaches .* more than float16 holds; give features_dtype: float32"
    ):
        done(step, inputs, tmp_path / "large", data, task, given=table_)


def test_equal_samples_are_asked_once(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    split = data.splits["train"]
    twice = replace(data, splits={**data.splits, "train": split.take(np.r_[np.arange(len(split)), :30])})
    inputs, table_ = given(net := Net())
    made = done(label(views=2), inputs, tmp_path, twice, task, given=table_)
    assert sum(net.rows) == 2 * len(split) == made.meta["statistics"]["rows"]
    labelled = np.arange(len(split) + 30) % 3 == 0
    partly = replace(twice, splits={"train": replace(twice.splits["train"], labelled=labelled)})
    made = done(label(views=2, mix=Mixup()), inputs, tmp_path / "mixed", partly, task, given=table_)
    student = {"model": MLP(hidden=(4,)), "teacher": made}
    done(Distill(name="s", mix=Mixup(), **{**SHORT, "budget": Budget(epochs=2)}), student, tmp_path, partly, task)


def test_no_batch_holds_one_sample(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    split = data.splits["train"]
    for count in (65, 64, 33, 31, 2):
        fewer = replace(data, splits={"train": split.take(np.arange(count))})
        inputs, table_ = given(net := Net())
        done(label(views=2), inputs, tmp_path / str(count), fewer, task, given=table_)
        assert min(net.rows) > 1
        assert sum(net.rows) == 2 * count


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": ("trian",)}, r"splits: the data have no split 'trian'; did you mean train"),
        ({"views": 4, "augment": False}, r"views is 4, and nothing varies the samples"),
        ({"features": ("stem.9",)}, r"has no module 'stem.9'"),
        ({"labels": 5000, "mix": Mixup()}, r"labels: 5000 asked for"),
    ],
)
def test_settings_that_cannot_be(
    settings: dict[str, Any], message: str, data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        done(label(**settings), {"teacher": teacher}, tmp_path, data, task)
    assert not (tmp_path / "labels").exists()


def test_an_empty_split_is_refused(data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path) -> None:
    empty = replace(data, splits={**data.splits, "test": data.splits["train"].take(np.arange(0))})
    with pytest.raises(DataError, match="splits is test, which hold no samples"):
        done(label(splits=("test",)), {"teacher": teacher}, tmp_path, empty, task)


def test_a_disk_that_is_too_small(task: ImageClassification, teacher: Artifact, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"labels: the store needs about .* TB, and .* has .* free; free some"):
        label()._refuse_small_disk(context(tmp_path, data, task, "labels"), 10**13)


def test_the_estimate_is_near(data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path) -> None:
    for name, keep in (
        ("exact", EXACT),
        ("half", DenseCodec()),
        ("coarse", DenseCodec(dtype="uint8")),
        ("top", TopKCodec(4)),
    ):
        step = label(keep=keep, views=40, shard=100_000)
        rows, size = step.estimate(data, task)
        made = done(step, {"teacher": teacher}, tmp_path / name, data, task)
        assert rows == made.meta["statistics"]["rows"]
        real = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
        assert size == pytest.approx(real, rel=0.25)


def test_the_manifest_says_what_it_is_made_from(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    made = done(label(views=2), {"teacher": teacher}, tmp_path, data, task)
    meta = read_manifest(made.folder)["meta"]
    assert meta["teacher"]["fingerprint"] == teacher.hash
    assert meta["data"] == data.fingerprint
    assert meta["classes"] == list(task.classes)
    assert meta["views"] == {
        "count": 2,
        "seed": 0,
        "augment": True,
        "augmentation": {"crop": 1, "flip": True},
        "mix": None,
    }
    size = sum(path.stat().st_size for path in made.folder.glob("**/*.arrow"))
    assert meta["statistics"]["bytes"] == size
    assert f"{len(data.splits['train']) * 2} answers in 2 views" in meta["summary"]
    assert "kept mass 1.0000, KL lost 0 nats" in meta["summary"]
    assert teacher.hash[:16] in meta["summary"]
    json.dumps(meta, allow_nan=False)
    assert isinstance(Store.open(made.folder).read(Store.open(made.folder).seen[:2]), Outputs)
