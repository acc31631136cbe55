"""What a step's key must see: everything that changes its result, so that nothing stale is kept."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from decoct.apply import apply
from decoct.artifact import Artifact
from decoct.data.given import describe_loaders
from decoct.errors import RecipeError
from decoct.keys import plugin_sources
from decoct.models.given import fingerprint
from tiny import TAUGHT, recipe


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


def test_apply_again_with_other_settings_starts_anew(tmp_path: Path) -> None:
    run = recipe(TAUGHT).run(tmp_path / "run")
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
