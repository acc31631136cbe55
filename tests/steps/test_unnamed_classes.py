"""Classes without names are not matched by their numbers where their counts differ; loaders need no `raw`."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import decoct as dc


def loader(targets: torch.Tensor) -> DataLoader:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(64, 4), targets), batch_size=32)


def test_a_store_of_three_classes_does_not_teach_five(tmp_path: Path) -> None:
    data = loader(torch.randint(3, (64,)))
    dc.label(nn.Linear(4, 3), data, tmp_path / "labels", dtype="float32")
    with pytest.raises(dc.DecoctError, match="knows 3 classes and the student has 5, and neither has names"):
        dc.distill(dc.Stored(tmp_path / "labels"), nn.Linear(4, 5), data, objective=dc.KD(), epochs=1)


def test_numbers_from_loaders_are_kept_and_taught(tmp_path: Path) -> None:
    data = loader(torch.randn(64))
    big = nn.Linear(4, 1)
    made = dc.label(big, data, tmp_path / "labels", task=dc.Regression())
    assert "KL" not in made.meta["summary"]
    small, settings = nn.Linear(4, 1), {"task": dc.Regression(), "objective": dc.LogitMSE(), "epochs": 2}
    stored = dc.distill(dc.Stored(tmp_path / "labels"), small, data, val=data, **settings)
    live = dc.distill(big, small, data, val=data, **settings)
    assert stored.scores == live.scores


@pytest.mark.parametrize("keep", [{"top_k": 1}, {"dtype": "uint8"}])
def test_numbers_are_not_cut(keep: dict, tmp_path: Path) -> None:
    with pytest.raises(dc.DecoctError, match="keep"):
        dc.label(nn.Linear(4, 1), loader(torch.randn(64)), tmp_path / "labels", task=dc.Regression(), **keep)
    assert not (tmp_path / "labels").exists()
