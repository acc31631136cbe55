"""Small data sets made by hand, and a task with a network on each."""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from decoct.data.base import Data, Dataset, Split
from decoct.data.hashing import content_keys, image_keys, text_keys
from decoct.data.splits import assemble
from decoct.tasks.base import Task
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.tokenizers import WordPiece
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification

sys.path.insert(0, str(Path(__file__).parent))  # task_toys.py


class Made(Data):
    """Made by a test."""

    use: ClassVar[str] = "made"

    def open(self, *, offline: bool = False) -> Dataset:
        raise AssertionError("made by hand")


@pytest.fixture
def images() -> Dataset:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (120, 6, 9, 3), dtype=np.uint8)
    whole = Split({"image": pixels, "label": np.arange(120) % 4}, image_keys(pixels))
    splits = {"train": whole.take(np.arange(80)), "test": whole.take(np.arange(80, 120))}
    return assemble(Made(labels=20), splits, classes=("a", "b", "c", "d"))


def _table(target: dict[str, np.ndarray], classes: tuple[str, ...]) -> Dataset:
    generator = np.random.default_rng(1)
    rows = np.c_[generator.normal(1e4, 3e3, 90), generator.choice([1.0, 2.0, 5.0], 90), generator.exponential(2, 90)]
    rows[::7, 2] = np.nan
    rows[3, 1] = np.nan
    keys = content_keys(row.tobytes() for row in rows)
    whole = Split({"features": rows} | target, keys)
    splits = {"train": whole.take(np.arange(60)), "test": whole.take(np.arange(60, 90))}
    info = {"categories": {"kind": {"1": 1.0, "2": 2.0, "5": 5.0, "9": 9.0}}}
    return assemble(Made(labels=30), splits, classes=classes, features=("money", "kind", "wait"), info=info)


@pytest.fixture
def table() -> Dataset:
    return _table({"label": np.random.default_rng(2).integers(0, 2, 90)}, ("no", "yes"))


@pytest.fixture
def numbers() -> Dataset:
    return _table({"value": np.random.default_rng(2).normal(2e5, 5e4, 90)}, ())


@pytest.fixture
def texts() -> Dataset:
    words = ["good", "bad", "film", "a", "very", "dull", "bright", "story"]
    generator = np.random.default_rng(3)
    lines = [" ".join(generator.choice(words, generator.integers(1, 12))) for _ in range(80)]
    whole = Split({"text": lines, "label": np.arange(80) % 2}, text_keys(lines))
    splits = {"train": whole.take(np.arange(60)), "test": whole.take(np.arange(60, 80))}
    return assemble(Made(), splits, classes=("negative", "positive"))


@pytest.fixture(params=["images", "table", "numbers", "texts"])
def case(request: pytest.FixtureRequest) -> tuple[Task, Dataset, nn.Module]:
    data = request.getfixturevalue(request.param)
    task: Task = {
        "images": ImageClassification(size=5, teacher_size=7),
        "table": TabularClassification(),
        "numbers": Regression(),
        "texts": TextClassification(tokenizer=WordPiece(size=40), max_length=10),
    }[request.param].resolve(data)
    from task_toys import TextNet

    torch.manual_seed(0)
    interface = task.reading("student").interface
    if request.param == "texts":
        return task, data, TextNet(interface.vocabulary or 0, interface.width)
    width = int(np.prod(interface.shape))
    return task, data, nn.Sequential(nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, interface.width))
