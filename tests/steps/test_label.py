"""The label step: what a store holds is what the teacher says, and what is wrong is said before anything is used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from decoct.artifact import Artifact, read_manifest
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.data.views import seen_of
from decoct.errors import DataError, IntegrityError, RecipeError, ResourceError
from decoct.models.given import given_model
from decoct.models.mlp import MLP
from decoct.models.saving import load_model
from decoct.models.small_resnet import SmallResNet
from decoct.outputs import Needs, Outputs
from decoct.steps.base import Context, Step
from decoct.steps.distill import Distill
from decoct.steps.label import Label
from decoct.steps.labelling import Answers, pieces_of
from decoct.steps.train import Train
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.reading import Store
from decoct.tasks.augment import Augment
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.mixing.base import Mixing
from decoct.tasks.mixing.cutmix import CutMix
from decoct.tasks.mixing.mixup import Mixup
from decoct.training.budget import Budget

EXACT = DenseCodec(dtype="float32")
SHORT: dict[str, Any] = {"budget": Budget(steps=6), "batch_size": 16, "log_every": 1}
CROP = Augment(crop=1, flip=True)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=100).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification(augment=CROP).resolve(data)


def context(folder: Path, data: Dataset, task: Any, name: str, **settings: Any) -> Context:
    work = folder / f".{name}.work"
    return Context(task=task, data=data, name=name, folder=folder / name, work=work, seed=3, device="cpu", **settings)


def done(step: Step, inputs: dict[str, Any], *where: Any, **settings: Any) -> Artifact:
    """Runs a step; what it left beside its artifact goes when it is done, as in a run."""
    at = context(*where, step.name, **settings)
    made = step.run(inputs, at)
    shutil.rmtree(at.work, ignore_errors=True)
    return made


@pytest.fixture(scope="module")
def teacher(data: Dataset, task: ImageClassification, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("teacher")
    return done(Train(name="teacher", **SHORT), {"model": SmallResNet(width=4)}, folder, data, task)


def label(**settings: Any) -> Label:
    return Label(**{"name": "labels", "keep": EXACT, "batch_size": 32, "shard": 64, **settings})


class Net(nn.Module):
    """A net with a batch norm and a dropout, which answer otherwise in train mode; counts its samples."""

    def __init__(self, inputs: int = 64, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(12, classes)
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        logits: torch.Tensor = self.head(self.body(x))
        return logits


def given(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs, and the table of given objects as a factory, so that calls are counted in `module` itself."""
    return {"teacher": given_model("net", module)}, {"net": lambda: module}


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
    store, module = Store.open(made.folder), load_model(teacher).eval()
    split, count = data.splits["train"], 3 if views else 1
    assert len(store) == len(split) * count == made.meta["statistics"]["rows"]
    answers = Answers(step, {"teacher": teacher}, context(tmp_path, data, task, "again"))
    parts = [part for piece in pieces_of(step, context(tmp_path, data, task, "again")) for part in piece.parts]
    pairs = [(part.view, index) for part in parts for index in part.indices.tolist()]
    np.random.default_rng(0).shuffle(pairs)
    collate, sight = answers._collates["train"], answers._sight
    for start in range(0, len(pairs), 7):
        chosen = np.array(pairs[start : start + 7] if len(pairs) - start > 7 else pairs[-7:])
        numbers, indices = chosen[:, 0].astype(np.uint64), chosen[:, 1]
        seeds = sight.views.seeds(numbers, split.keys[indices]) if sight.augment else None
        batch = collate(split, indices, seeds=seeds, view=numbers)
        with torch.no_grad():
            said = task.forward(module, batch, Needs(features=frozenset({"stem.0"})), "teacher")
        read = store.read(seen_of(batch))
        assert torch.equal(read.logits, said.logits)
        assert torch.equal(read.features["stem.0"], said.features["stem.0"])
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
    store, module = Store.open(made.folder), load_model(teacher).eval()
    for name in ("train", "validation"):
        split = data.splits[name]
        batch = problem.collate(split, np.arange(len(split))[::-1])
        with torch.no_grad():
            said = problem.forward(module, batch, Needs(), "teacher").logits
        torch.testing.assert_close(store.read(seen_of(batch)).logits, said, rtol=2e-6, atol=2e-6)
    assert made.meta["views"]["count"] == 1


def table(*, values: bool, rows: int = 60) -> Dataset:
    from decoct.data.base import Split

    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(rows, 3)).astype(np.float32)
    target = {"value": x.sum(1) * 3 + 1} if values else {"label": (x.sum(1) > 0).astype(np.int64)}
    keys = drawn.integers(0, 2**63, rows).astype(np.uint64)
    whole = Split({"features": x, **target}, keys)
    splits = {"train": whole.take(np.arange(45)), "validation": whole.take(np.arange(45, rows))}
    return Dataset(splits, "table", () if values else ("no", "yes"), ("a", "b", "c"))


def texts(rows: int = 60) -> Dataset:
    from decoct.data.base import Split
    from decoct.data.hashing import text_keys

    drawn = np.random.default_rng(1)
    words = ["good", "bad", "fine", "film", "a", "very", "dull"]
    lines = [" ".join(drawn.choice(words, drawn.integers(1, 12))) + f" {i}" for i in range(rows)]
    whole = Split({"text": lines, "label": np.array([int("good" in each) for each in lines])}, text_keys(lines))
    splits = {"train": whole.take(np.arange(45)), "validation": whole.take(np.arange(45, rows))}
    return Dataset(splits, "texts", ("no", "yes"))


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
    from decoct.steps.export import Export
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
    said = answers.predict(batch).features["body"]
    assert torch.equal(store.read(seen_of(batch)).features["body"], said.half())
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


# The teacher's contract.


class Broken(Net):
    """Raises in its third call, in the middle of the work."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.rows) == 2:
            self.rows.append(0)
            raise ZeroDivisionError
        return super().forward(x)


class Forgetful(Net):
    """Writes to a buffer while it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_module_is_put_back_after_an_error(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    inputs, table_ = given(net := Broken().train())
    with pytest.raises(ZeroDivisionError):
        done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert all(each.training for each in net.modules())
    assert all(each.requires_grad for each in net.parameters())
    asked = sum(net.rows)
    done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert asked == 64
    assert sum(net.rows) == 2 * len(data.splits["train"]), "the shard that was finished is not asked again"


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_of_a_teacher_that_changes_are_never_kept(
    workers: int, data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    inputs = {"teacher": given_model("net", net := Forgetful())}
    for _ in range(2):
        with pytest.raises(IntegrityError, match="changed while it taught: buffer calls"):
            done(label(workers=workers), inputs, tmp_path, data, task, given={"net": net})
        assert not (tmp_path / "labels").exists()
        assert not list((tmp_path / ".labels.work").glob("shards/*"))


def test_a_fresh_teacher_is_one_teacher(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        made = done(label(), {"teacher": MLP(hidden=(4,))}, tmp_path / str(seed), data, task)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(Store.open(made.folder))
    assert torch.equal(found[0].read(found[0].seen).logits, found[1].read(found[0].seen).logits)


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


# A folder that holds something already.


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_store_is_refused_and_says_what_differs(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    step = label(views=2)
    made = done(step, {"teacher": teacher}, tmp_path, data, task)
    before = tree(made.folder)
    other = MLP(hidden=(4,))
    split = data.splits["train"]
    fewer = replace(data, splits={"train": split.take(np.arange(30))}, fingerprint="other")
    cases: list[tuple[Label, Any, Dataset, Any, str]] = [
        (step, other, data, task, r"teacher\.fingerprint \("),
        (step.replace(views=3), teacher, data, task, r"views\.count \(2 there, 3 here\)"),
        (step.replace(views={"count": 2, "seed": 8}), teacher, data, task, r"views\.seed \(0 there, 8 here\)"),
        (step.replace(mix=Mixup()), teacher, data, task, r"views\.mix"),
        (step.replace(views=1, augment=False), teacher, data, task, r"views\.augment \(true there, false here\)"),
        (step, teacher, data, task.replace(augment=Augment(crop=2, flip=True)), r"views\.augmentation"),
        (step, teacher, fewer, task, r"data \("),
        (step.replace(keep=DenseCodec()), teacher, data, task, r"keep \("),
        (step.replace(features=("stem.0",)), teacher, data, task, r"features \("),
        (step.replace(splits=("train", "validation")), teacher, data, task, r"splits \("),
        (step.replace(precision="bf16"), teacher, data, task, r"teacher\.precision \(no there, bf16 here\)"),
        (step.replace(batch_size=16), teacher, data, task, r"batch_size \(32 there, 16 here\)"),
        (step.replace(shard=32), teacher, data, task, r"shard \(64 there, 32 here\)"),
    ]
    for changed, value, rows, problem, message in cases:
        with pytest.raises(RecipeError, match=rf"labels holds a store of another .*{message}.*; give another folder"):
            changed.refuse_another({"teacher": value}, context(tmp_path, rows, problem, "labels"))
    step.refuse_another({"teacher": teacher}, context(tmp_path, data, task, "labels"))
    step.replace(workers=2, threads=1).refuse_another({"teacher": teacher}, context(tmp_path, data, task, "labels"))
    assert tree(made.folder) == before


def test_a_recipe_with_other_settings_labels_anew(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    done(label(views=2), {"teacher": teacher}, tmp_path, data, task)
    other = task.replace(augment=Augment(crop=2))
    made = done(label(views=2), {"teacher": teacher}, tmp_path, data, other)
    fresh = done(label(views=2), {"teacher": teacher}, tmp_path / "fresh", data, other)
    assert tree(made.folder) == tree(fresh.folder)


def test_what_is_no_store_is_left_alone(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    step = label()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match=r"labels exists and holds no store .*; give another folder"):
        step.refuse_another({"teacher": teacher}, context(tmp_path, data, task, "labels"))
    where = context(teacher.folder.parent, data, task, teacher.folder.name)
    with pytest.raises(RecipeError, match="teacher holds an artifact of kind model; give another folder"):
        step.refuse_another({"teacher": teacher}, where)
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    (broken / "model.safetensors").write_text("weights")
    with pytest.raises(RecipeError, match=r"model exists and holds no store \(.* is damaged\)"):
        step.refuse_another({"teacher": teacher}, context(tmp_path, data, task, "model"))


# Damage.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def delete(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    other = path.with_name("00000.arrow")
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


SHARD = "shards/00001.arrow"


@pytest.mark.parametrize(
    ("file", "harm", "asked"),
    [
        (SHARD, flip, 32),
        (SHARD, truncate, 32),
        (SHARD, delete, 32),
        (SHARD, swap, 64),
        ("index.arrow", flip, 0),
        ("index.arrow", delete, 0),
        ("store.json", flip, 0),
        ("store.json", truncate, 0),
        ("store.json", delete, 0),
        ("task.json", flip, 0),
        ("manifest.json", flip, 96),
        ("manifest.json", truncate, 96),
        ("manifest.json", delete, 96),
    ],
)
def test_damage_is_found_named_and_repaired_alone(
    file: str, harm: Any, asked: int, data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    few = replace(data, splits={"train": data.splits["train"].take(np.arange(48))})
    inputs, table_ = given(net := Net())
    step = label(views=2, batch_size=16, shard=32)
    made = done(step, inputs, tmp_path, few, task, given=table_)
    before = tree(made.folder)
    assert len(made.json("store.json")["shards"]) == 3
    inodes = {path.name: path.stat().st_ino for path in made.folder.glob("shards/*")}
    net.rows.clear()
    harm(made.folder / file)
    named = r"0000[01]\.arrow" if harm is swap else Path(file).name
    with pytest.raises(IntegrityError, match=named):
        Artifact.load(made.folder)
    student = {"model": MLP(hidden=(4,)), "teacher": made}
    if file != "task.json":  # which the store itself does not read
        with pytest.raises(IntegrityError, match=named):
            done(Distill(name="s", views=2, **SHORT), student, tmp_path, few, task)
    assert not (tmp_path / "s").exists()
    step.refuse_another(inputs, context(tmp_path, few, task, "labels", given=table_))
    done(step, inputs, tmp_path, few, task, given=table_)
    assert sum(net.rows) == asked
    assert tree(made.folder) == before
    if asked == 32:
        after = {path.name: path.stat().st_ino for path in made.folder.glob("shards/*")}
        assert {name for name in after if after[name] != inodes[name]} == {"00001.arrow"}


@pytest.mark.parametrize("harm", [flip, delete])
def test_a_store_of_another_teacher_is_refused_without_its_manifest_too(
    harm: Any, data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    inputs, table_ = given(Net())
    made = done(label(), inputs, tmp_path, data, task, given=table_)
    harm(made.folder / "manifest.json")
    where = context(tmp_path, data, task, "labels")
    with pytest.raises(RecipeError, match=r"holds a store of another teacher\.fingerprint"):
        label().refuse_another({"teacher": given_model("net", Net(seed=9))}, where)
    label().refuse_another(inputs, where)


# Workers.


def test_workers_and_threads_change_nothing(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    net = Net()
    inputs = {"teacher": given_model("net", net)}
    step = label(views=3, mix=Mixup(), features=("body",))
    one = done(step, inputs, tmp_path / "one", data, task, given={"net": net})
    two = done(step.replace(workers=2, threads=1), inputs, tmp_path / "two", data, task, given={"net": net})
    assert tree(one.folder) == tree(two.folder)
    before = torch.get_num_threads()
    done(step.replace(threads=3), inputs, tmp_path / "three", data, task, given={"net": net})
    assert torch.get_num_threads() == before


class Threads(Net):
    """Says with how many threads it works."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 10), float(torch.get_num_threads()))


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_are_those_asked_for(workers: int, data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    net = Threads()
    inputs = {"teacher": given_model("net", net)}
    made = done(label(workers=workers, threads=3), inputs, tmp_path, data, task, given={"net": net})
    store = Store.open(made.folder)
    assert store.read(store.seen).logits.unique().tolist() == [3.0]


def test_how_it_is_done_is_no_part_of_the_key(data: Dataset, task: ImageClassification, teacher: Artifact) -> None:
    from decoct.run import key_of

    keys = {
        key_of(each, {"teacher": [teacher]}, data, task, 0)
        for each in (label(), label(workers=4), label(threads=2), label(ray="local"), label(name="x"))
    }
    assert len(keys) == 1
    assert key_of(label(views=3), {"teacher": [teacher]}, data, task, 0) not in keys


# Loaders.


def loader_context(folder: Path, batches: Any, net: nn.Module) -> tuple[Context, dict[str, Any]]:
    problem = ImageClassification(raw=True, classes=tuple(map(str, range(10))), shape=(1, 8, 8))
    data = Dataset({}, "loader", info={"given": "loaders"})
    table_ = {"loaders": {"train": batches}, "net": lambda: net}
    return context(folder, data, problem, "labels", given=table_), {"teacher": given_model("net", net)}


def test_a_loader_in_another_order_goes_on_where_a_run_stopped(tmp_path: Path) -> None:
    x = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(9)]
    reference, inputs = loader_context(tmp_path / "whole", whole, Net())
    label(shard=18).run(inputs, reference)
    wanted = Store.open(tmp_path / "whole/labels")
    assert len(wanted) == 90

    def stops(batches: list[Any], after: int) -> Any:
        yield from batches[:after]
        raise KeyboardInterrupt

    net = Net()
    where, inputs = loader_context(tmp_path / "cut", stops(whole, 7), net)
    with pytest.raises(KeyboardInterrupt):
        label(shard=18).run(inputs, where)
    where, inputs = loader_context(tmp_path / "cut", whole, net)
    label(shard=18).run(inputs, where)
    assert tree(tmp_path / "cut/labels") == tree(tmp_path / "whole/labels")
    assert sum(net.rows) == 90 + 18 - 18, "three shards were finished, and one batch of the fourth was not asked yet"

    net = Net()
    where, inputs = loader_context(tmp_path / "mixed", stops(whole[::-1], 5), net)
    with pytest.raises(KeyboardInterrupt):
        label(shard=18).run(inputs, where)
    again = x[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    where, inputs = loader_context(
        tmp_path / "mixed", [(part, torch.zeros(len(part), dtype=torch.long)) for part in again.split(9)], net
    )
    label(shard=18).run(inputs, where)
    found = Store.open(tmp_path / "mixed/labels")
    assert (found.seen == wanted.seen).all()
    torch.testing.assert_close(found.read(found.seen).logits, wanted.read(found.seen).logits, rtol=1e-6, atol=1e-6)


def test_loaders_that_give_nothing_or_too_much_is_asked(tmp_path: Path) -> None:
    where, inputs = loader_context(tmp_path, [], Net())
    with pytest.raises(DataError, match="the loader gave no batch"):
        label().run(inputs, where)
    with pytest.raises(RecipeError, match="workers is 2, and the data come from a loader"):
        label(workers=2).run(inputs, where)
    with pytest.raises(RecipeError, match="splits is train, validation, and the data are loaders"):
        label(splits=("train", "validation")).run(inputs, where)


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
