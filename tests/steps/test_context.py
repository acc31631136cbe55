"""Steps inside a step: each has a folder of its own by all that it hangs on, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decoct.artifact import Artifact
from decoct.data.base import Dataset
from decoct.data.digits import Digits
from decoct.errors import DataError
from decoct.models.mlp import MLP
from decoct.steps.base import Context, Inputs, Step
from decoct.steps.train import Train
from decoct.tasks.image_classification import ImageClassification
from decoct.training.budget import Budget

LOCAL = Train(name="local", budget=Budget(steps=4), batch_size=8, log_every=1, checkpoint_seconds=0.001)
SITES = {"north": np.arange(0, 60, 2), "south": np.arange(1, 60, 2)}


class Killed(Exception):
    """Raised where a kill would come."""


class Visits(Step):
    """Trains one model at each site, by one and the same step."""

    use: ClassVar[str] = "visits"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("spec",)}
    local: Train = LOCAL

    def run(self, inputs: Inputs, context: Context) -> Artifact:
        made = [context.run(self.local, inputs, data=context.data.narrowed(rows)) for rows in SITES.values()]
        return made[-1]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=60).open()


@pytest.fixture(scope="module")
def task(data: Dataset) -> ImageClassification:
    return ImageClassification().resolve(data)


def context(folder: Path, data: Dataset, task: ImageClassification, **settings: Any) -> Context:
    where = {"folder": folder / "outer", "work": folder / ".work"}
    return Context(task=task, data=data, name="outer", seed=3, device="cpu", **where, **settings)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.file("model.safetensors"))


def equal(a: Artifact, b: Artifact) -> bool:
    ours, theirs = weights(a), weights(b)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def alone(folder: Path, data: Dataset, task: ImageClassification, rows: np.ndarray) -> Artifact:
    """What the step gives on the data of one site, by itself."""
    where = replace(context(folder, data.narrowed(rows), task), name="local")
    where.work.mkdir(parents=True)
    return LOCAL.run({"model": MLP(hidden=(8,))}, where)


def test_two_sites_get_artifacts_of_their_own(tmp_path: Path, data: Dataset, task: ImageClassification) -> None:
    inputs, outer = {"model": MLP(hidden=(8,))}, context(tmp_path, data, task)
    made = {name: outer.run(LOCAL, inputs, data=data.narrowed(rows)) for name, rows in SITES.items()}
    for name, rows in SITES.items():
        assert equal(made[name], alone(tmp_path / name, data, task, rows))
    assert not equal(made["north"], made["south"])
    again = outer.run(LOCAL, inputs, data=data.narrowed(SITES["north"].copy()))
    assert again.folder == made["north"].folder


def test_a_folder_hangs_on_step_inputs_data_task_and_seed(
    tmp_path: Path, data: Dataset, task: ImageClassification
) -> None:
    outer = context(tmp_path, data, task)
    first, other = MLP(hidden=(8,)), MLP(hidden=(9,))
    step = LOCAL.replace(budget=Budget(steps=1))
    made = outer.run(step, {"model": first})
    different = [
        outer.run(step.replace(batch_size=9), {"model": first}),
        outer.run(step, {"model": other}),
        outer.run(step, {"model": made}),
        outer.run(step, {"model": first}, data=data.narrowed(np.arange(30))),
        outer.run(step, {"model": first}, task=task.replace(std=tuple(2 * each for each in task.std))),
        outer.run(step, {"model": first}, seed=4),
    ]
    assert len({each.folder for each in (made, *different)}) == 7
    assert outer.run(step.replace(checkpoint_seconds=9.0), {"model": first}, seed=3).folder == made.folder


def test_stopped_at_the_second_site_it_goes_on_there(tmp_path: Path, data: Dataset, task: ImageClassification) -> None:
    inputs, told = {"model": MLP(hidden=(8,))}, []
    long = LOCAL.replace(budget=Budget(steps=1000))

    def killing(done: float, total: float, text: str) -> None:
        told.append(text)
        if len(told) == 2:
            raise Killed

    whole = Visits(name="outer", local=long).run(inputs, context(tmp_path / "whole", data, task))
    where = context(tmp_path / "killed", data, task)
    where.run(long, inputs, data=data.narrowed(SITES["north"]))
    steps = where.work / "steps"
    (first,) = steps.glob("local-*/manifest.json")
    made = first.stat().st_mtime_ns
    with pytest.raises(Killed):
        Visits(name="outer", local=long).run(inputs, replace(where, progress=killing))
    assert list(steps.glob(".local-*.work/checkpoint-*"))
    again = Visits(name="outer", local=long).run(inputs, where)
    assert first.stat().st_mtime_ns == made
    assert equal(again, whole)


def test_narrowed_data_have_a_fingerprint_of_their_own(data: Dataset) -> None:
    north, south = (data.narrowed(rows) for rows in SITES.values())
    assert len({data.fingerprint, north.fingerprint, south.fingerprint}) == 3
    assert data.narrowed(SITES["north"][::-1]).fingerprint != north.fingerprint
    assert data.narrowed(SITES["north"], "test").fingerprint != north.fingerprint
    assert np.array_equal(north.splits["train"].keys, data.splits["train"].keys[SITES["north"]])
    assert north.splits["test"] is data.splits["test"]
    assert (north.classes, dict(north.info)) == (data.classes, dict(data.info))


@pytest.mark.parametrize(
    ("indices", "split", "text"),
    [
        (np.array([0, 60]), "train", "indices go from 0 to 60; the train split has 0 to 59"),
        (np.array([-1]), "train", "indices go from -1"),
        (np.array([0.5]), "train", "give whole numbers"),
        (np.zeros(60, bool), "train", "give whole numbers"),
        (np.array([0]), "trian", "did you mean train"),
    ],
)
def test_what_cannot_be_narrowed_is_refused(data: Dataset, indices: np.ndarray, split: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        data.narrowed(indices, split)
