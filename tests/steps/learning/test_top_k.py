"""A store of few classes at a high temperature says so."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import decoct as dc


def learned(folder: Path, temperature: float, keep: dict[str, Any]) -> list[str]:
    torch.manual_seed(0)
    big, small = torch.nn.Linear(4, 40), torch.nn.Linear(4, 40)
    samples = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(40, (64,)))
    loader = torch.utils.data.DataLoader(samples, batch_size=32)
    task = dc.TabularClassification(raw=True)
    dc.label(big, loader, folder / "labels", task=task, **keep)
    teacher, objective = dc.Stored(folder / "labels"), dc.KD(temperature=temperature)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dc.distill(teacher, small, loader, task=task, objective=objective, epochs=1, out=folder / "run", select="last")
    return [str(each.message) for each in caught if "beyond the" in str(each.message)]


@pytest.mark.parametrize("tail", ["bucket", "uniform"])
def test_most_of_a_softened_distribution_in_the_tail_is_said(tail: str, tmp_path: Path) -> None:
    (warning,) = learned(tmp_path, 4.0, {"top_k": 5, "tail": tail})
    assert "kd: at temperature 4" in warning
    assert "beyond the 5 that it keeps" in warning


@pytest.mark.parametrize("keep", [{"top_k": 36}, {}])
def test_little_or_nothing_in_the_tail_is_not(keep: dict[str, Any], tmp_path: Path) -> None:
    assert learned(tmp_path, 4.0, keep) == []
