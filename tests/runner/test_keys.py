"""What a step's key must see: everything that changes its result, so that nothing stale is kept."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from decoct.artifact import Artifact, writing
from decoct.data.digits import Digits
from decoct.data.given import describe_loaders
from decoct.errors import RecipeError
from decoct.models.base import identity
from decoct.models.given import fingerprint
from decoct.models.mlp import MLP
from decoct.models.remote import Remote
from decoct.models.saving import save_model
from decoct.runner.apply import apply
from decoct.runner.keys import derive, key_of, plugin_sources
from decoct.steps.base import Context
from decoct.steps.distill import Distill
from decoct.steps.labelling.step import Label
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.mixing.mixup import Mixup
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.remote.server import teaching
from tiny import PAIR, recipe


def test_a_role_is_a_name_and_no_path() -> None:
    for role in ("/tmp/victim", "../../victim", "a/b", ""):
        inputs = {"model": "small", "teacher": "teacher", role: "teacher"}
        with pytest.raises(RecipeError, match="is no name; use letters, digits"):
            recipe(steps__2__inputs=inputs)


def test_a_module_is_known_by_its_parts_and_their_settings() -> None:
    torch.manual_seed(0)
    weights = nn.Linear(3, 2).state_dict()

    def built(*parts: nn.Module) -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 2), *parts)
        module[0].load_state_dict(weights)
        return module

    found = [built(nn.ReLU()), built(nn.Tanh()), built(nn.Dropout(0.1)), built(nn.Dropout(0.2)), built()]
    assert len({fingerprint(each) for each in found}) == len(found)
    assert fingerprint(built(nn.ReLU())) == fingerprint(built(nn.ReLU()))


class Own(Dataset):
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2,), index * self.scale), index % 2


def test_loaders_are_known_by_what_they_hold() -> None:
    held = TensorDataset(torch.arange(10.0), torch.arange(10))
    other = TensorDataset(torch.arange(10.0) + 1, torch.arange(10))
    sets = [held, other, Subset(held, [0, 1, 2]), Subset(held, [0, 1, 3]), Subset(other, [0, 1, 2]), Own(1.0), Own(2.0)]
    prints = [describe_loaders("l", {"train": DataLoader(each, batch_size=2)}).fingerprint for each in sets]
    assert len(set(prints)) == len(sets)
    before = torch.get_rng_state()
    assert describe_loaders("l", {"train": DataLoader(Own(1.0), batch_size=2)}).fingerprint == prints[5]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_source_of_a_plugin_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "outside_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = "from decoct.models.mlp import MLP\n\n\nclass Mine(MLP):\n    hidden: tuple[int, ...] = (4,)\n"
    (package / "nets.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.import_module("outside_models.nets").Mine()
    first = plugin_sources([spec])
    (package / "nets.py").write_text(text.replace("4", "8"))
    assert list(first) == ["outside_models"]
    assert plugin_sources([spec]) != first
    assert plugin_sources([recipe()]) == {}
    sys.modules.pop("outside_models.nets")


HOW: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"use": "process"}, {"workers": 3, "ahead": 9, "restarts": 0, "device": "cuda"}),
    ({"use": "ray"}, {"address": "10.0.0.1:6379", "workers": 3, "ahead": 9, "restarts": 0, "device": "cuda"}),
    ({"use": "http"}, {"ahead": 9}),
    ({"use": "black_box"}, {"ahead": 9, "retries": 0, "timeout": 1.0}),
    ({"use": "stored"}, {"verify": "none"}),
    ({"use": "process", "teacher": {"use": "stored"}}, {"teacher": {"use": "stored", "verify": "all"}}),
]
WHAT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"use": "process"}, {"threads": 2}),
    ({"use": "ray"}, {"threads": 2}),
    ({"use": "process"}, {"teacher": {"use": "frozen"}}),
    ({"use": "black_box"}, {"confidence": 0.7}),
]


@pytest.mark.parametrize(("same", "teacher", "other"), [(True, *each) for each in HOW] + [(False, *e) for e in WHAT])
def test_how_a_teacher_is_asked_is_no_part_of_a_key(
    same: bool, teacher: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    data = Digits(limit=20).open()
    task = ImageClassification().resolve(data)
    inputs = {"teacher": MLP(hidden=(4,))}
    context = Context(task=task, data=data, name="x", folder=tmp_path, work=tmp_path, seed=0)
    for kind in (Distill, Label):
        one, two = (kind.parse({"name": "x", "teachers": {"teacher": each}}) for each in (teacher, teacher | other))
        keys = [key_of(step, {"teacher": [inputs["teacher"]]}, data, task, 0) for step in (one, two)]
        assert (keys[0] == keys[1]) is same
        if isinstance(one, Label) and isinstance(two, Label):
            assert (one._described(inputs, context) == two._described(inputs, context)) is same


def test_keys_of_settings_that_were_there_before_are_what_they_were() -> None:
    """The hash over all that stands in a step, as it was before some settings of teachers were left out."""
    data = Digits(limit=20).open()
    task = ImageClassification().resolve(data)
    step = Distill(name="x", teachers={"teacher": {"use": "frozen"}})
    plain = {name: each for name, each in step.plain().items() if name not in ("name", "inputs", *step.not_in_key)}
    assert step.keyed() == plain | {"name": "x", "inputs": step.plain()["inputs"]}
    model = MLP(hidden=(4,))
    assert identity(model) == model.digest()
    parts = {"step": plain, "version": step.version, "inputs": {"teacher": [model.digest()]}, "data": data.fingerprint}
    parts |= {"task": task.digest(), "seed": derive(0, step.seed_name()), "machine": ""}
    text = json.dumps(parts, sort_keys=True)
    assert key_of(step, {"teacher": [model]}, data, task, 0) == hashlib.sha256(text.encode()).hexdigest()


def test_settings_of_labelling_that_change_nothing_are_no_part_of_its_key(tmp_path: Path) -> None:
    data = Digits(limit=20).open()
    task = ImageClassification(augment=Augment(crop=1)).resolve(data)
    inputs, mix = {"teacher": MLP(hidden=(4,))}, Mixup()
    context = Context(task=task, data=data, name="x", folder=tmp_path, work=tmp_path, seed=0)

    def known(**settings: Any) -> tuple[str, Any]:
        step = Label(name="x", **settings)
        return key_of(step, {"teacher": [inputs["teacher"]]}, data, task, 0), step._described(inputs, context)

    assert known(labels=8) == known(features_dtype="float32") == known()
    for one, two in ((known(labels=8, mix=mix), known(mix=mix)), (known(features=("0",)), known(features=("1",)))):
        assert one[0] != two[0]
        assert one[1] != two[1]
    assert known(features=("0",), features_dtype="float32")[0] != known(features=("0",))[0]


def test_a_server_is_known_by_its_weights_and_not_by_its_address(tmp_path: Path) -> None:
    task = TabularClassification(classes=("a", "b"), shape=(3,), raw=True)
    spec, interface = MLP(hidden=(4,)), task.reading("teacher").interface
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / str(len(found))
        with writing(folder, kind="model", name="a", meta={"side": "teacher"}) as draft:
            draft.write_json("task.json", task.plain())
            save_model(draft, spec.build(interface), spec, interface, side="teacher")
        with teaching(folder, port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                url = f"http://127.0.0.1:{server.server_address[1]}"
                found.append(identity(Remote(url)))
                assert identity(Remote(url, timeout=5.0, retries=1, token="DECOCT_OTHER")) == found[-1]
            finally:
                server.shutdown()
                thread.join()
    assert found[0] == found[1] != found[2]


def test_apply_again_with_other_settings_starts_anew(tmp_path: Path) -> None:
    run = recipe(PAIR).run(tmp_path / "run")
    source = run.artifact("teacher").folder
    made = []
    for lr in ("0.0", "0.5"):
        out = tmp_path / "applied"
        optimizer = f"optimizer={{use: sgd, lr: {lr}}}"
        apply("train", source, out, ["budget={steps: 3}", "batch_size=16", "select=last", optimizer])
        made.append(Artifact.load(out).file("model.safetensors").read_bytes())
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink()
        out.rmdir()
        assert not list(tmp_path.glob(".applied*"))
    assert made[0] != made[1]
