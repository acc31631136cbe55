"""Fixed views: which view a sample comes in, what it looks like there, and by what its stored answer is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.data.base import Dataset, Split
from decoct.data.digits import Digits
from decoct.data.hashing import splitmix64
from decoct.data.sources import Batches
from decoct.data.splits import keep_labels
from decoct.data.views import Views, seen_of
from decoct.outputs import Batch
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment
from decoct.tasks.mixing.base import Mixer, Mixing
from decoct.tasks.mixing.cutmix import CutMix
from decoct.tasks.mixing.mixup import Mixup

KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30).map(lambda each: np.array(each, np.uint64))
SEEDS = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Digits(limit=60).open()


def task_of(data: Dataset, **augment: Any) -> ImageClassification:
    return ImageClassification(augment=Augment(**augment)).resolve(data)


@given(KEYS, SEEDS, st.integers(1, 17), st.integers(0, 10_000))
def test_every_view_comes_once_in_count_epochs(keys: np.ndarray, seed: int, count: int, epoch: int) -> None:
    views = Views(count=count, seed=seed)
    numbers = np.array([views.numbers(epoch + each, keys) for each in range(count)])
    assert numbers.dtype == np.uint64
    assert (np.sort(numbers, axis=0) == np.arange(count)[:, None]).all()


@given(KEYS, SEEDS, st.integers(1, 65536), st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_numbers_and_seeds_hang_on_seed_key_and_epoch_alone(
    keys: np.ndarray, seed: int, count: int, epoch: int, random: Any
) -> None:
    views = Views(count=count, seed=seed)
    order = list(range(len(keys)))
    random.shuffle(order)
    numbers, seeds = views.numbers(epoch, keys), views.seeds(views.numbers(epoch, keys), keys)
    again = views.numbers(epoch, keys[order])
    assert (again == numbers[order]).all()
    assert (views.seeds(again, keys[order]) == seeds[order]).all()
    for index in order[:3]:
        alone = keys[index : index + 1]
        assert views.numbers(epoch, alone) == numbers[index]
        assert views.seeds(numbers[index : index + 1], alone) == seeds[index]


def test_seeds_by_hand() -> None:
    """H(seed, "view", number, key), word after word through SplitMix64."""
    import hashlib

    word = np.array([int.from_bytes(hashlib.sha256(b"view").digest()[:8], "little")], np.uint64)
    keys = np.array([3, 2**64 - 1], np.uint64)
    state = np.zeros(1, np.uint64)
    for part in (np.array([7], np.uint64), word, np.array([2, 5], np.uint64), keys):
        state = splitmix64(state ^ part)
    assert (Views(count=9, seed=7).seeds(np.array([2, 5]), keys) == state).all()
    assert len(np.unique([Views(seed=s).seeds(n, keys) for s in range(5) for n in range(20)])) == 200


def test_views_start_apart() -> None:
    """In one epoch samples stand in all views, so that no batch is of one view alone."""
    keys = splitmix64(np.arange(8000, dtype=np.uint64))
    counts = np.bincount(Views(count=8).numbers(0, keys).astype(int), minlength=8)
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def pictures(batch: Batch) -> dict[tuple[int, int], np.ndarray]:
    """Pixels by key and view."""
    pixels = batch.side("student").numpy()
    return {(int(k), int(v)): pixels[i] for i, (k, v) in enumerate(zip(batch.keys, batch.view))}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 50),
    st.booleans(),
    st.sampled_from([None, Mixup(alpha=0.4), CutMix(), Mixup(probability=0.5)]),
    st.integers(2, 60),
    st.integers(0, 5),
)
def test_every_batch_shows_the_same_pixels_for_the_same_view(
    size: int, augment: bool, mix: Mixing | None, take: int, seed: int
) -> None:
    """Whatever size, order, subset and epoch: a sample in a view is what collate makes of it alone."""
    data = Digits(limit=60).open()
    task, split, views = task_of(data, crop=2, flip=True), data.splits["train"], Views(count=3, seed=seed)
    mixer = None if mix is None else Mixer(task, mix, split, views.seed)
    collate = task.collate if mixer is None else mixer.collate
    chosen = np.zeros(len(split), bool)
    chosen[np.random.default_rng(seed).permutation(len(split))[:take]] = True
    subset = replace(split, labelled=chosen) if mix is None else split
    only = "labelled" if mix is None else "all"
    source = Batches(subset, collate, batch_size=size, seed=seed, augment=augment, views=views, only=only)  # type: ignore[arg-type]
    for _ in range(2):
        for batch in source:
            for (key, number), found in pictures(batch).items():
                index = np.flatnonzero(split.keys == key)[:1]
                numbers = np.array([number], np.uint64)
                seeds = views.seeds(numbers, split.keys[index]) if augment else None
                alone = collate(split, index, seeds=seeds, view=numbers)
                assert (alone.side("student").numpy()[0] == found).all()
                assert alone.seen[0] == batch.seen[np.flatnonzero((batch.keys == key) & (batch.view == number))[0]]


def looks(task: ImageClassification, split: Split, views: Views, number: int, mix: Mixing | None = None) -> np.ndarray:
    collate = task.collate if mix is None else Mixer(task, mix, split, views.seed).collate
    indices = np.arange(len(split))
    numbers = np.full(len(split), number, np.uint64)
    found: np.ndarray = collate(split, indices, seeds=views.seeds(numbers, split.keys), view=numbers).seen
    return found


def test_what_is_seen_tells_views_settings_and_partners_apart(data: Dataset) -> None:
    split, task = data.splits["train"], task_of(data, crop=1)
    base = looks(task, split, Views(count=4), 0)
    assert (looks(task, split, Views(count=9), 0) == base).all(), "how many views there are does not matter"
    other = [
        looks(task, split, Views(count=4), 1),
        looks(task, split, Views(count=4, seed=1), 0),
        looks(task_of(data, crop=2), split, Views(count=4), 0),
        looks(task_of(data, crop=1, flip=True), split, Views(count=4), 0),
        looks(task, split, Views(count=4), 0, Mixup()),
        looks(task, split, Views(count=4), 0, Mixup(alpha=0.5)),
        looks(task, split, Views(count=4), 0, CutMix()),
        looks(task, split, Views(count=4), 1, CutMix()),
        split.keys,
    ]
    every = np.concatenate([base, *other])
    assert len(np.unique(every)) == len(every)
    plain = task_of(data)
    assert (looks(plain, split, Views(count=4), 3) == split.keys).all(), "nothing varies: the sample itself"


def test_another_partner_is_another_look(data: Dataset) -> None:
    split, task = data.splits["train"], task_of(data)
    fewer = split.take(np.arange(len(split) - 10))
    a, b = (looks(task, each, Views(), 0, Mixup()) for each in (split, fewer))
    collates = [Mixer(task, Mixup(), each, 0).collate for each in (split, fewer)]
    numbers = np.zeros(len(fewer), np.uint64)
    shown = [each(s, np.arange(len(fewer)), view=numbers) for each, s in zip(collates, (split, fewer))]
    same_pixels = (shown[0].side("student") == shown[1].side("student")).flatten(1).all(1).numpy()
    same = a[: len(fewer)] == b
    assert 0 < same.sum() < len(fewer)
    assert same_pixels[same].all()


@pytest.mark.parametrize("mix", [None, Mixup(alpha=0.3), CutMix(probability=0.5)])
@pytest.mark.parametrize("labels", [None, 20])
def test_what_is_seen_is_known_without_pixels(data: Dataset, mix: Mixing | None, labels: int | None) -> None:
    split, task, views = data.splits["train"], task_of(data, crop=2), Views(count=3, seed=4)
    split = split if labels is None else keep_labels(split, labels)
    indices, numbers = np.arange(len(split))[::-1], np.full(len(split), 2, np.uint64)
    seen = task.inputs("student").seen
    seeds = views.seeds(numbers, split.keys[indices])
    if mix is None:
        told, shown = seen(split, indices, seeds), task.collate(split, indices, seeds=seeds, view=numbers)
    else:
        mixer = Mixer(task, mix, split, views.seed)
        told = mixer.seen(split, indices, seeds, numbers, seen)
        shown = mixer.collate(split, indices, seeds=seeds, view=numbers)
    assert (told == shown.seen).all()


def test_texts_tables_and_numbers_are_seen_by_their_keys() -> None:
    from decoct.tasks.regression import Regression
    from decoct.tasks.tabular_classification import TabularClassification
    from decoct.tasks.text_classification import TextClassification

    keys = np.array([5, 9, 2, 2**63], np.uint64)
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    for task, columns in (
        (TabularClassification(), {"features": table, "label": np.array([0, 1, 0, 1])}),
        (Regression(), {"features": table, "value": np.arange(4.0)}),
        (TextClassification(), {"text": ["a b", "b", "c a b", "a"], "label": np.array([0, 1, 0, 1])}),
    ):
        split = Split(columns, keys)
        found = Dataset({"train": split}, "x", ("no", "yes") if "label" in columns else (), ("f", "g"))
        made = task.resolve(found).collate(split, np.array([3, 1]), view=2)
        assert made.seen.tolist() == [2**63, 9]


def batch_of(inputs: Any) -> Batch:
    return Batch({"student": inputs, "teacher": inputs})


def test_a_loader_s_samples_are_known_by_their_content() -> None:
    x = torch.arange(24, dtype=torch.float32).reshape(4, 2, 3)
    seen = seen_of(batch_of(x))
    assert seen.dtype == np.uint64
    assert len(np.unique(seen)) == 4
    assert (seen_of(batch_of(x.flip(0)[1:3])) == seen[::-1][1:3]).all(), "whatever stands beside it"
    assert (seen_of(batch_of(x.permute(2, 1, 0).contiguous().permute(2, 1, 0))) == seen).all(), "however it is laid out"
    assert not (seen_of(batch_of(x.double())) == seen).any()
    assert not (seen_of(batch_of(x.reshape(4, 3, 2))) == seen).any()
    changed = x.clone()
    changed[2, 1, 1] += 1e-6 * changed[2, 1, 1]
    assert (seen_of(batch_of(changed)) == seen).tolist() == [True, True, False, True]
    two = Batch({"student": x + 1, "teacher": x})
    assert (seen_of(two) == seen).all(), "the teacher's side decides"
    assert (seen_of(two, "student") == seen_of(batch_of(x + 1))).all()


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=6), st.integers(0, 5))
def test_padding_does_not_change_what_a_text_is(texts: list[list[int]], more: int) -> None:
    def padded(length: int, filling: int) -> dict[str, torch.Tensor]:
        ids = torch.full((len(texts), length), filling)
        mask = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        return {"input_ids": ids, "attention_mask": mask}

    longest = max(map(len, texts))
    seen = seen_of(batch_of(padded(longest, 0)))
    assert (seen_of(batch_of(padded(longest + more, 7))) == seen).all()
    assert len(set(seen.tolist())) == len({tuple(each) for each in texts})


def test_a_batch_that_says_what_is_seen_is_believed() -> None:
    batch = replace(batch_of(torch.zeros(2, 3)), seen=np.array([4, 5], np.uint64))
    assert seen_of(batch).tolist() == [4, 5]
