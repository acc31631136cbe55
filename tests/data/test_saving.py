"""Samples as an artifact: what is written is read again, bit for bit; what cannot be written is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.artifact import Artifact, writing
from decoct.data.base import Dataset, Split
from decoct.data.saving import load_data, save_data, with_train
from decoct.errors import DataError, IntegrityError, RecipeError

KEYS = np.arange(3, dtype=np.uint64) + 2**63


def saved(folder: Path, split: Split, **settings: Any) -> Artifact:
    with writing(folder, kind="data", name="made") as draft:
        save_data(draft, split, **settings)
    return Artifact.load(folder)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, list) and len(one) and isinstance(one[0], np.ndarray):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return one == other


COLUMNS: dict[str, Any] = {
    "image": np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1)).astype(np.uint8),
    "features": np.array([[1.0, np.nan], [np.inf, -0.0], [1e-300, 2.0]]),
    "label": np.array([2, 0, 1]),
    "text": ["one\nline", "\u2028 \x85 ünï", ""],
    "ragged": [np.full((h, w), h * w, np.float32) for h, w in ((2, 3), (0, 4), (1, 1))],
}


def test_every_kind_of_column_comes_back(tmp_path: Path) -> None:
    split = Split(COLUMNS, KEYS, labelled=np.array([True, False, True]), group=KEYS[::-1].copy())
    made = saved(tmp_path / "made", split, classes=("a", "b", "c"), features=("x", "y"))
    found = load_data(made)
    assert list(found.splits) == ["train"]
    again = found.splits["train"]
    assert set(again.columns) == set(COLUMNS)
    assert all(same(column, again.columns[name]) for name, column in COLUMNS.items())
    assert all(same(getattr(split, name), getattr(again, name)) for name in ("keys", "labelled", "group"))
    assert (found.classes, found.features, found.fingerprint) == (("a", "b", "c"), ("x", "y"), made.hash)
    plain = load_data(saved(tmp_path / "plain", Split({"text": ["a"]}, KEYS[:1]))).splits["train"]
    assert (plain.labelled, plain.group) == (None, None)


@given(st.lists(st.text(), max_size=5))
def test_any_texts_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("texts") / "made"
    split = Split({"text": texts}, np.arange(len(texts), dtype=np.uint64))
    assert load_data(saved(folder, split)).splits["train"].columns["text"] == texts


def test_other_content_has_another_fingerprint_and_damage_is_found(tmp_path: Path) -> None:
    one, other = (saved(tmp_path / each, Split({"text": [each]}, KEYS[:1])) for each in ("a", "b"))
    assert load_data(one).fingerprint != load_data(other).fingerprint
    (one.folder / "text.jsonl").write_text('"c"\n')
    with pytest.raises(IntegrityError, match=r"text\.jsonl"):
        Artifact.load(one.folder)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"text": ["a"]}, "column 'text' has 1 entries, and there are 3 keys"),
        ({"x": [1, 2, 3]}, "column 'x' holds int; allowed"),
        ({"x": ["a", 1, "b"]}, "column 'x' holds"),
        ({"x": [np.zeros(2), np.zeros(2, np.int64), np.zeros(2)]}, "column 'x' holds"),
        ({"x": np.array([None, 1, "a"], object)}, "column 'x' holds"),
        ({"../x": np.zeros(3)}, "its name must be that of a file"),
    ],
)
def test_what_cannot_be_written_is_refused(columns: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        saved(tmp_path / "made", Split(columns, KEYS))
    assert list(tmp_path.iterdir()) == []


def data() -> Dataset:
    split = Split({"text": ["x", "y"], "label": np.array([0, 1])}, KEYS[:2])
    return Dataset({"train": split, "test": split}, "print", ("no", "yes"))


def test_it_stands_for_the_training_split_alone(tmp_path: Path) -> None:
    made = saved(tmp_path / "made", Split({"text": ["a", "b", "c"]}, KEYS))
    found = with_train(data(), made)
    assert found.splits["test"] is data().splits["test"] or found.splits["test"].columns["text"] == ["x", "y"]
    train = found.splits["train"]
    assert train.columns["text"] == ["a", "b", "c"]
    assert not train.labelled.any()
    assert train.columns["label"].tolist() == [0, 0, 0]
    other = with_train(data(), saved(tmp_path / "other", Split({"text": ["a", "b", "d"]}, KEYS)))
    assert len({found.fingerprint, other.fingerprint, "print", made.hash}) == 4


def test_what_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    wrong = saved(tmp_path / "wrong", Split({"text": ["a"], "label": np.array([0])}, KEYS[:1]), classes=("yes", "no"))
    with pytest.raises(DataError, match="has the classes yes, no, and the data no, yes"):
        with_train(data(), wrong)
    with pytest.raises(DataError, match="has no column 'text'; it has image"):
        with_train(data(), saved(tmp_path / "image", Split({"image": np.zeros((1, 2, 2, 1), np.uint8)}, KEYS[:1])))
    with pytest.raises(RecipeError, match="not loaders"):
        with_train(Dataset({}, "print", info={"given": "loaders"}), wrong)
    with writing(tmp_path / "model", kind="records", name="made") as draft:
        draft.write_json("x.json", 1)
    with pytest.raises(RecipeError, match="is of kind records and holds no samples"):
        load_data(Artifact.load(tmp_path / "model"))
