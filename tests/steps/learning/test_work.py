"""Work is what torch's counter counts, and decides alone with how many threads a command's step trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decoct.data.digits import Digits
from decoct.meters.macs import macs
from decoct.models.given import given_model
from decoct.steps.base import Context
from decoct.steps.learning.work import Work
from decoct.steps.train import Train
from decoct.tasks.image_classification import ImageClassification
from decoct.threads import CHOSEN, COUNT
from decoct.training.budget import Budget


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.layer(input)[0]


IMAGES, WORDS = torch.randn(3, 4, 9, 9), torch.randn(3, 7, 6)


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), IMAGES),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), IMAGES),
        (nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(162, 5)), IMAGES),
        (nn.Linear(6, 3, bias=False), WORDS),
        (nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), WORDS),
        (Recurrent(nn.LSTM), WORDS),
        (Recurrent(nn.GRU), WORDS),
    ],
)
def test_counts_as_torch_does(module: nn.Module, example: torch.Tensor) -> None:
    module.eval()
    name = "src" if isinstance(module, nn.TransformerEncoderLayer) else "input"
    expected = macs(module, {name: example}).total
    random, before = torch.get_rng_state(), torch.no_grad()
    with before, Work() as work:
        module(example)
        torch.rand(3)
    assert work.macs == expected > 0
    assert torch.equal(random, torch.get_rng_state())


class Threads(nn.Module):
    """Notes with how many threads it trains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.seen: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.add(torch.get_num_threads())
        return self.body(x)


@pytest.mark.parametrize(
    ("own", "number", "width", "expected"),
    [
        ({COUNT: "2", CHOSEN: "2"}, 2, 8, 1),
        ({COUNT: "2", CHOSEN: "2"}, 2, 40_000, 2),
        ({COUNT: "2"}, 2, 8, 2),
        ({COUNT: "2", CHOSEN: "2"}, 3, 8, 3),
    ],
    ids=["small", "large", "the user's in the environment", "the user's by torch"],
)
def test_small_steps_train_on_one_thread(
    own: dict[str, str], number: int, width: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CHOSEN, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    data = Digits(limit=60).open()
    task = ImageClassification().resolve(data)
    net = Threads(width)
    where: dict[str, Any] = {"folder": tmp_path / "s", "work": tmp_path / "w", "given": {"net": lambda: net}}
    context = Context(task=task, data=data, name="s", seed=0, device="cpu", **where)
    torch.set_num_threads(number)
    try:
        Train(name="s", budget=Budget(steps=2), batch_size=32).run({"model": given_model("net", net)}, context)
        assert (net.seen, torch.get_num_threads()) == ({expected}, number)
    finally:
        torch.set_num_threads(before)
