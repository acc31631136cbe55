"""`dc.label`, `decoct label`, and a recipe with a label step from its check to its verification."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import decoct as dc
from decoct.artifact import Artifact
from decoct.cli.app import call
from decoct.data.digits import Digits
from decoct.errors import DataError, IntegrityError, RecipeError
from decoct.runner.execution import plan
from decoct.runner.verify import verify_run
from decoct.store.reading import Store
from decoct.tasks.image_classification import ImageClassification
from tiny import LEARN, PAIR, Watch, recipe, tree

STORED: dict[str, Any] = {
    **PAIR,
    "task": {"use": "image_classification", "augment": {"crop": 1}},
    "models": {"large": {"use": "mlp", "hidden": [12]}, "small": {"use": "mlp", "hidden": [6]}},
    "steps": [
        {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **LEARN},
        {"use": "label", "name": "labels", "inputs": {"teacher": "teacher"}, "views": 20, "shard": 500},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "labels"}, **LEARN},
    ],
}


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


def test_label_writes_what_the_module_says(tmp_path: Path) -> None:
    net = Net().train()
    state = torch.get_rng_state()
    made = dc.label(net, Digits(limit=80), tmp_path / "store", dtype="float32")
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert made.kind == "store"
    data = Digits(limit=80).open()
    task = ImageClassification().resolve(data)
    store, split = Store.open(made.folder), data.splits["train"]
    batch = task.collate(split, torch.randperm(len(split)).numpy())
    with torch.no_grad():
        outputs = net.eval()(task.reading("teacher").preprocessing()(batch.side("teacher")))
    torch.testing.assert_close(store.read(batch.seen).logits, outputs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {"use": "dense", "dtype": "float16"}),
        ({"dtype": "uint8"}, {"use": "dense", "dtype": "uint8"}),
        ({"top_k": 4, "tail": "uniform"}, {"use": "top_k", "k": 4, "tail": "uniform"}),
    ],
)
def test_short_ways_to_say_how_logits_are_kept(settings: Any, kept: dict[str, Any], tmp_path: Path) -> None:
    made = dc.label(Net(), Digits(limit=40), tmp_path / "store", **settings)
    assert kept.items() <= made.meta["keep"].items()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vews": 4}, r"label: 'vews' is no setting; did you mean views"),
        ({"keep": {"use": "dense"}, "top_k": 3}, r"label: keep says how logits are kept; leave top_k, tail and dtype"),
        ({"tail": "bucket"}, r"keep.*tail"),
        ({"top_k": 0}, r"keep.*k"),
        ({"dtype": "int4"}, r"keep.*dtype"),
    ],
)
def test_wrong_settings(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        dc.label(Net(), Digits(limit=40), tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_the_same_call_completes_and_another_is_refused(tmp_path: Path) -> None:
    net, out = Net(), tmp_path / "store"
    dc.label(net, Digits(limit=40), out)
    before = tree(out)
    dc.label(net, Digits(limit=40), out)
    assert tree(out) == before
    for teacher, limit, settings, what in (
        (Net(seed=1), 40, {}, r"teacher\.fingerprint"),
        (net, 30, {}, "data"),
        (net, 40, {"dtype": "uint8"}, "keep"),
        (net, 40, {"views": 2, "mix": {"use": "mixup"}}, r"views\.count \(1 there, 2 here\)"),
    ):
        with pytest.raises(RecipeError, match=rf"holds a store of another .*{what}"):
            dc.label(teacher, Digits(limit=limit), out, **settings)
    assert tree(out) == before
    assert not (tmp_path / ".store.applying").exists()


def test_loaders_are_labelled_and_taught_from(tmp_path: Path) -> None:
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 10
    shuffled = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    net = Net()
    made = dc.label(net, shuffled, tmp_path / "store", dtype="float32", shard=32)
    assert made.meta["statistics"]["rows"] == 60
    shared: dict[str, Any] = {"train": shuffled, "epochs": 2, "select": "last"}
    found = dc.distill(dc.Stored(tmp_path / "store"), Net(2), out=tmp_path / "stored", **shared)
    live = dc.distill(net, Net(2), out=tmp_path / "live", **shared)
    weights = [next(each.folder.rglob("*student/model.safetensors")).read_bytes() for each in (found, live)]
    assert len(weights[0]) == len(weights[1])
    other = DataLoader(TensorDataset(x + 1, y), batch_size=16)
    with pytest.raises(DataError, match="holds no answer for 16 of 16 samples"):
        dc.distill(dc.Stored(tmp_path / "store"), Net(2), out=tmp_path / "other", **{**shared, "train": other})


class Jittered(Dataset[Any]):
    """Samples with noise that is drawn anew each time."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 8, 8), float(index)) + self.draw(), index % 10


class Twice:
    """Batches that can be gone through twice: once for the shapes, once to be labelled."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.passes = loader, 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(self.loader if self.passes <= 2 else ())


@pytest.mark.parametrize("draw", [lambda: torch.rand(()).item(), random.random, lambda: float(np.random.rand())])
def test_a_loader_that_draws_anew_is_told(draw: Callable[[], float], tmp_path: Path) -> None:
    loader, net = DataLoader(Jittered(draw), batch_size=16), Net()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.warns(UserWarning, match=r"16 of the first 16 samples are none that the store .* holds.*views") as told:
        made = dc.label(net, loader, tmp_path / "store")
    assert [Path(each.filename).name for each in told] == ["test_label.py"]
    assert made.meta["statistics"]["rows"] == 60
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize("kind", ["shuffle", "generator", "workers", "batches", "twice"])
def test_a_loader_that_gives_the_same_samples_is_not(kind: str, tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(60, 1, 8, 8), torch.arange(60) % 10)
    generator = torch.Generator().manual_seed(3)
    loaders: dict[str, Any] = {
        "shuffle": DataLoader(data, batch_size=16, shuffle=True),
        "generator": DataLoader(data, batch_size=16, shuffle=True, generator=generator),
        "workers": DataLoader(data, batch_size=16, shuffle=True, num_workers=1, persistent_workers=True),
        "batches": list(DataLoader(data, batch_size=16)),
        "twice": Twice(DataLoader(data, batch_size=16)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = dc.label(Net(), loaders[kind], tmp_path / "store")
    assert made.meta["statistics"]["rows"] == 60
    if kind == "generator":
        other = torch.Generator().manual_seed(3)
        same = DataLoader(data, batch_size=16, shuffle=True, generator=other)
        next(iter(same))  # from which shapes are read
        list(same)
        assert torch.equal(generator.get_state(), other.get_state())


# A recipe.


def test_a_recipe_repairs_its_store_and_skips_what_is_whole(tmp_path: Path) -> None:
    made = recipe(STORED).run(tmp_path)
    store = made.artifact("labels").folder
    before = tree(store)
    assert len(list(store.glob("shards/*"))) > 2
    whole = Watch()
    recipe(STORED, steps__1__workers=2, steps__1__threads=1).run(tmp_path, watch=whole)
    assert whole.steps("skipped") == ["teacher", "labels", "student"], "workers are no part of the key"
    shard = store / "shards/00001.arrow"
    inodes = {path.name: path.stat().st_ino for path in store.glob("shards/*")}
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert any("00001.arrow is damaged" in " ".join(each.wrong) for each in verify_run(tmp_path))
    with pytest.raises(IntegrityError, match=r"00001\.arrow is damaged"):
        Artifact.load(store)
    again = Watch()
    recipe(STORED).run(tmp_path, watch=again)
    assert "00001.arrow is damaged" in again.why("labels")
    assert again.steps("skipped") == ["teacher", "student"]
    assert tree(store) == before
    after = {path.name: path.stat().st_ino for path in store.glob("shards/*")}
    assert [name for name in sorted(after) if after[name] != inodes[name]] == ["00001.arrow"]
    other = Watch()
    recipe(STORED, steps__1__views=3).run(tmp_path, watch=other)
    assert other.steps("skipped") == ["teacher"], "other settings label anew"
    assert Artifact.load(store).meta["views"]["count"] == 3


def test_a_run_that_was_damaged_without_a_manifest(tmp_path: Path) -> None:
    store = recipe(STORED).run(tmp_path).artifact("labels").folder
    before = tree(store)
    (store / "manifest.json").unlink()
    recipe(STORED).run(tmp_path)
    assert tree(store) == before


def test_the_plan_estimates_the_store(tmp_path: Path) -> None:
    planned = {each.node.step.name: each for each in plan(recipe(STORED), tmp_path)}
    made = recipe(STORED).run(tmp_path).artifact("labels")
    rows = made.meta["statistics"]["rows"]
    text = planned["labels"].estimate
    assert text.startswith(f"{rows:,} answers, about ")
    size = float(text.split("about ")[1].split()[0]) * {"kB": 1e3, "MB": 1e6}[text.split()[-1]]
    real = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
    assert size == pytest.approx(real, rel=0.25)
    assert planned["student"].estimate == ""
    done = {each.node.step.name: each for each in plan(recipe(STORED), tmp_path)}
    assert done["labels"].skip
    assert done["labels"].estimate == ""


def called(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What the command prints, in one line."""
    found = call([str(each) for each in arguments])
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    assert found == code, text
    return text


def test_the_command_from_check_to_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "stored.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(STORED))
    assert "answers, about" in called(capsys, "check", file)
    assert "answers, about" in called(capsys, "plan", file, "--out", out)
    called(capsys, "run", file, "--out", out)
    teacher, store = (next(out.glob(f"*{name}")) for name in ("teacher", "labels"))
    found = Artifact.load(store)
    called(capsys, "verify", out)
    alone = tmp_path / "alone"
    settings = ["views=20", "shard=500", "--out", alone]
    summary = called(capsys, "label", teacher, *settings)
    assert f"{found.meta['statistics']['rows']:,} answers in 20 views" in summary
    assert "KL lost" in summary
    shards = {name: each for name, each in tree(alone).items() if name.endswith(".arrow")}
    assert shards == {name: each for name, each in tree(store).items() if name.endswith(".arrow")}
    called(capsys, "label", teacher, *settings)
    assert "views.count (20 there, 2 here)" in called(capsys, "label", teacher, "views=2", "--out", alone, code=2)


def test_a_wrong_store_in_a_recipe_is_found_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stored.yaml"
    plain = json.loads(json.dumps(STORED))
    plain["steps"][2]["objective"] = [{"use": "kd"}, {"use": "hint", "layers": {"hidden.0": "hidden.0"}}]
    file.write_text(yaml.safe_dump(plain))
    text = called(capsys, "check", file, code=2)
    assert "feature 'hidden.0' is wanted of the store 'labels', which keeps" in text


# Kills.


def test_a_killed_labelling_goes_on_where_it_was() -> None:
    """Killed before each sync, rename and removal, in calls of the teacher, and with a worker that dies."""
    script = Path(__file__).parents[1] / "kill_label.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    total, shard = found["total"], 32
    assert found["whole"] == total
    assert set(found["names"]) >= {"labels", "labels/manifest.json", "labels/shards/00000.arrow"}
    each = found["each"]
    assert len(each["kinds"]) > 20
    assert set(each["kinds"]) >= {"fsync", "replace", "rename"}
    assert all(each["same"])
    assert all(total <= asked <= total + shard for asked in each["asked"])
    calls = found["calls"]
    assert sum(calls["kills"]) > 5
    assert all(calls["same"])
    assert all(total <= asked <= total + shard * kills for asked, kills in zip(calls["asked"], calls["kills"]))
    assert found["workers"]["same"]
    assert total < found["workers"]["asked"] <= total + 2 * shard
