"""Held-out samples, kept labels and limits depend on content, not on position."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.data.base import Data, Dataset, Split
from decoct.data.hashing import keyed, text_keys
from decoct.data.splits import assemble, even_shares, first, hold_out, keep_labels
from decoct.errors import DataError, RecipeError


class Toy(Data):
    """A made-up data set."""

    use: ClassVar[str] = "toy"

    def open(self, *, offline: bool = False) -> Dataset:
        return assemble(self, {"train": toy(1000), "test": toy(100, "t")}, classes=("a", "b", "c"))


def toy(count: int, prefix: str = "") -> Split:
    texts = [f"{prefix}{i}" for i in range(count)]
    return Split({"text": texts, "label": np.arange(count) % 3}, text_keys(texts))


def members(split: Split) -> set[str]:
    return set(split.columns["text"])


def test_hold_out_ignores_order_and_added_samples() -> None:
    split = toy(1000)
    rest, held = hold_out(split, 0.2, "test")
    assert members(rest).isdisjoint(members(held))
    assert len(rest) + len(held) == 1000
    assert 150 < len(held) < 250
    shuffled = split.take(np.random.default_rng(0).permutation(1000))
    assert members(hold_out(shuffled, 0.2, "test")[1]) == members(held)
    grown = hold_out(toy(1500), 0.2, "test")[1]
    assert members(held) == {text for text in members(grown) if int(text) < 1000}


def test_hold_out_takes_at_least_one() -> None:
    assert len(hold_out(toy(3), 0.001, "test")[1]) == 1


def test_equal_samples_stay_together() -> None:
    split = toy(50).take(np.tile(np.arange(50), 3))
    rest, held = hold_out(split, 0.3, "test")
    assert members(rest).isdisjoint(members(held))


def test_limit_and_labels() -> None:
    data = Toy(limit=300, labels=30).open()
    train = data.splits["train"]
    assert len(train) == 300
    assert train.labelled is not None
    assert np.bincount(train.columns["label"][train.labelled]).tolist() == [10, 10, 10]
    assert data.splits["test"].labelled is None
    assert data.splits["validation"].labelled is None
    assert data.fingerprint != Toy(limit=300).open().fingerprint


def test_labels_are_nested_and_independent_of_order() -> None:
    split = toy(600)
    few, more = keep_labels(split, 30), keep_labels(split, 60)
    assert not (few.labelled & ~more.labelled).any()
    order = np.random.default_rng(1).permutation(600)
    assert (keep_labels(split.take(order), 30).labelled == few.labelled[order]).all()


def test_limit_keeps_the_order() -> None:
    kept = first(toy(100), 10).columns["text"]
    assert kept == sorted(kept, key=int)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.data())
def test_even_shares_are_even(available: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(available)))
    shares = even_shares(np.array(available), count)
    assert shares.sum() == count
    assert (shares <= available).all()
    level = shares.max(initial=0)
    assert all(share >= level - 1 for share, most in zip(shares, available) if share < most)


def test_wrong_label_counts_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"labels: 901 asked for|labels: 2000 asked for"):
        Toy(labels=2000).open()
    with pytest.raises(RecipeError, match="fewer than the 3 classes"):
        Toy(labels=2).open()


def test_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="the test split is empty"):
        assemble(Toy(), {"train": toy(10), "test": toy(0)})


def test_validation_zero_means_none() -> None:
    assert set(Toy(validation=0).open().splits) == {"train", "test"}


def test_at_least_one_sample_is_held_out() -> None:
    """The one with the smallest hash where the fraction is below all of them."""
    split = toy(20)
    rest, held = hold_out(split, 1e-12, "validation")
    hashes = keyed("validation", split.keys)
    assert members(held) == {split.columns["text"][int(np.argmin(hashes))]}
    assert len(rest) == 19


def test_as_many_labels_as_there_are_and_one_for_each_class_are_taken() -> None:
    split = toy(9)
    assert keep_labels(split, 9).labelled.all()
    kept = keep_labels(split, 3)
    assert sorted(split.columns["label"][kept.labelled]) == [0, 1, 2]
    some = keep_labels(keep_labels(split, 4), 4)
    assert some.labelled.sum() == 4
    for wrong, words in ((10, "10 asked for, 9"), (2, "2 is fewer than the 3 classes")):
        with pytest.raises(RecipeError, match=words):
            keep_labels(split, wrong)
