"""The label step on what is there already: broken teachers, other stores, damage, workers, loaders."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from torch import nn

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.errors import DataError, ForwardFailed, IntegrityError, RecipeError, ResourceError, TeacherChanged
from decoct.models.given import given_model
from decoct.models.mlp import MLP
from decoct.models.small_resnet import SmallResNet
from decoct.runner.apply import alone
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.labelling.step import Label
from decoct.steps.train import Train
from decoct.store.codecs.dense import DenseCodec
from decoct.store.reading import Store
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.mixing.mixup import Mixup
from label_toys import CROP, SHORT, Net, context, done, given, label, tree


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
    with pytest.raises(ForwardFailed, match="ZeroDivisionError"):
        done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert all(each.training for each in net.modules())
    assert all(each.requires_grad for each in net.parameters())
    asked = sum(net.rows)
    done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert asked == 64
    assert sum(net.rows) == 2 * len(data.splits["train"]), "the shard that was finished is not asked again"


class Stops(Net):
    """Raises an error in its third call, once."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = [error]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.rows) == 2 and self.error:
            raise self.error.pop()
        return super().forward(x)


def test_damage_on_the_way_costs_one_shard(data: Dataset, task: ImageClassification, tmp_path: Path) -> None:
    inputs, table_ = given(net := Stops(IntegrityError("00001.arrow arrived damaged")))
    with pytest.raises(IntegrityError, match="arrived damaged"):
        done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert [path.name for path in (tmp_path / ".labels.work").glob("shards/*.arrow")] == ["00000.arrow"]
    done(label(views=2), inputs, tmp_path, data, task, given=table_)
    assert sum(net.rows) == 2 * len(data.splits["train"])


@pytest.mark.parametrize("error", [ResourceError, DataError, IntegrityError])
def test_what_has_nothing_to_do_with_the_settings_keeps_the_shards(
    error: type[Exception], data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    inputs, table_ = given(net := Stops(error("no space left on the disk")))
    where = (label(views=2), inputs, tmp_path / "labels", data, task, 0)
    with pytest.raises(error, match="no space left"):
        alone(*where, given=table_)
    alone(*where, given=table_)
    assert sum(net.rows) == 2 * len(data.splits["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


REMOVED: list[Path] = []
"""Folders of one test, in which `_held_while_it_goes` looks."""


def _held_while_it_goes(event: str, args: tuple[Any, ...]) -> None:
    if event != "shutil.rmtree" or not REMOVED or not Path(args[0]).is_relative_to(REMOVED[0]):
        return
    for own in (Path(args[0]) / ".lock", Path(args[0]).parent / ".lock"):
        if own.exists():
            with pytest.raises(filelock.Timeout), filelock.FileLock(own).acquire(timeout=0):
                pass
            REMOVED.append(own)


def test_the_folder_of_checkpoints_goes_while_it_is_held(
    data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    """A second call that came between would lose what it writes there."""
    sys.addaudithook(_held_while_it_goes)
    inputs, table_ = given(Net())
    REMOVED.append(tmp_path)
    try:
        alone(label(), inputs, tmp_path / "labels", data, task, 0, given=table_)
        assert len(REMOVED) == 2
    finally:
        REMOVED.clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_of_a_teacher_that_changes_are_never_kept(
    workers: int, data: Dataset, task: ImageClassification, tmp_path: Path
) -> None:
    inputs = {"teacher": given_model("net", net := Forgetful())}
    for _ in range(3 - workers):
        with pytest.raises(TeacherChanged, match="changed while it taught: buffer calls"):
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


# A folder that holds something already.


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
    with pytest.raises(RecipeError, match=r"model exists and holds no store \(.* is damaged.*\)"):
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
    from decoct.runner.keys import key_of

    keys = {
        key_of(each, {"teacher": [teacher]}, data, task, 0)
        for each in (label(), label(workers=4), label(threads=2), label(ray="local"), label(name="x"))
    }
    assert len(keys) == 1
    assert key_of(label(views=3), {"teacher": [teacher]}, data, task, 0) not in keys


@pytest.mark.ray
def test_a_cluster_gives_the_same_store(
    data: Dataset, task: ImageClassification, teacher: Artifact, tmp_path: Path
) -> None:
    one = done(label(views=2), {"teacher": teacher}, tmp_path / "one", data, task)
    ray = done(label(views=2, ray="local"), {"teacher": teacher}, tmp_path / "ray", data, task)
    assert tree(one.folder) == tree(ray.folder)


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
