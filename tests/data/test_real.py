"""Real data sets open with the counts that their sources give."""

from pathlib import Path

import numpy as np
import pytest

from decoct.data.california_housing import CaliforniaHousing
from decoct.data.cifar10 import CIFAR10
from decoct.data.credit_default import CreditDefault
from decoct.data.csv import CSV
from decoct.data.digits import Digits
from decoct.data.fashion_mnist import FashionMNIST
from decoct.data.sst2 import SST2


def test_digits() -> None:
    data = Digits().open(offline=True)
    assert sum(map(len, data.splits.values())) == 1797
    assert 0.17 < len(data.splits["test"]) / 1797 < 0.23
    assert data.fingerprint == Digits().open(offline=True).fingerprint
    train, test = (set(data.splits[name].keys.tolist()) for name in ("train", "test"))
    assert not train & test


def test_fashion_mnist(data_root: Path) -> None:
    data = FashionMNIST(path=data_root / "fashion-mnist", labels=1000).open(offline=True)
    train, validation, test = (data.splits[name] for name in ("train", "validation", "test"))
    assert len(train) + len(validation) == 60_000
    assert len(test) == 10_000
    pixels = sum(split.columns["image"].sum(dtype=np.uint64) for split in (train, validation))
    assert pixels / (60_000 * 784 * 255) == pytest.approx(0.2860405969887955, abs=1e-15)
    assert train.labelled is not None
    assert np.bincount(train.columns["label"][train.labelled]).tolist() == [100] * 10
    assert np.bincount(test.columns["label"]).tolist() == [1000] * 10


def test_cifar10_subset(data_root: Path) -> None:
    data = CIFAR10(path=data_root / "cifar10-subset", limit=500).open(offline=True)
    assert data.splits["train"].columns["image"].shape == (500, 32, 32, 3)
    whole = CIFAR10(path=data_root / "cifar10-subset").open(offline=True)
    train = np.r_[whole.splits["train"].columns["label"], whole.splits["validation"].columns["label"]]
    assert np.bincount(train).tolist() == [1000] * 10
    assert np.bincount(whole.splits["test"].columns["label"]).tolist() == [200] * 10


def test_sst2(data_root: Path) -> None:
    splits = SST2(path=data_root / "sst2").open(offline=True).splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 6920, "validation": 872, "test": 1821}


@pytest.mark.parametrize("inner", ["", "UCI_Credit_Card.csv.gz"])
def test_credit_default(data_root: Path, inner: str) -> None:
    data = CreditDefault(path=data_root / "credit-default" / inner).open(offline=True)
    labels = np.concatenate([split.columns["label"] for split in data.splits.values()])
    assert len(labels) == 30_000
    assert labels.sum() == 6636
    assert len(data.features) == 23
    assert "ID" not in data.features
    assert list(data.info["categories"]) == ["SEX", "EDUCATION", "MARRIAGE"]


def test_california_housing(data_root: Path) -> None:
    data = CaliforniaHousing(path=data_root / "california-housing").open(offline=True)
    rows = np.concatenate([split.columns["features"] for split in data.splits.values()])
    values = np.concatenate([split.columns["value"] for split in data.splits.values()])
    assert rows.shape == (20_640, 9)
    assert np.isnan(rows).sum() == 207
    assert values.max() == 500_001
    assert len(data.info["categories"]["ocean_proximity"]) == 5


def test_german_credit_and_adult_by_csv(data_root: Path) -> None:
    names = tuple(str(i) for i in (0, 2, 3, 5, 6, 8, 9, 11, 13, 14, 16, 18, 19))
    file = data_root / "german-credit" / "german.csv"
    german = CSV(path=file, header=False, target="20", categorical=names).open()
    assert sum(map(len, german.splits.values())) == 1000
    assert german.classes == ("1", "2")
    names = tuple(str(i) for i in (1, 3, 5, 6, 7, 8, 9, 13))
    file = data_root / "adult" / "adult-train.csv.gz"
    adult = CSV(path=file, header=False, target="14", categorical=names).open()
    assert sum(map(len, adult.splits.values())) == 32_561


def test_wine_quality_by_csv(data_root: Path) -> None:
    file = data_root / "wine-quality" / "winequality-white.csv"
    wine = CSV(path=file, header=False, target="11", kind="regression").open()
    assert sum(map(len, wine.splits.values())) == 4898
