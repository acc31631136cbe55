"""Mixed views: what they hang on, what both models see, targets, labels that do not leak."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from decoct.data.base import Dataset, Split
from decoct.data.hashing import image_keys, keyed
from decoct.data.sources import Batches
from decoct.errors import RecipeError
from decoct.outputs import Outputs
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.inputs.augment import Augment, augmented
from decoct.tasks.mixing.base import Mixer
from decoct.tasks.mixing.cutmix import CutMix, boxes
from decoct.tasks.mixing.mixup import Mixup
from decoct.tasks.tabular_classification import TabularClassification

SIZE, CLASSES = 60, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (SIZE, 6, 5, 1), dtype=np.uint8)
LABELS = RNG.integers(0, CLASSES, SIZE)
LABELLED = RNG.random(SIZE) < 0.4


def split(labelled=None, order=None):
    whole = Split({"image": IMAGES, "label": LABELS}, image_keys(IMAGES), labelled)
    return whole if order is None else whole.take(order)


def task(**fields):
    return ImageClassification(**fields).resolve(Dataset({"train": split()}, "", tuple("abc")))


def batches(mixing, data=None, *, size=16, epochs=1, augment=False, only="all", problem=None):
    data = data or split()
    problem = problem or task()
    mixer = Mixer(problem, mixing, data, 7, only=only)
    source = Batches(data, mixer.collate, batch_size=size, seed=7, augment=augment, only=only)
    return [batch for _ in range(epochs) for batch in source]


def by_key(found):
    """(view, key) -> image and target of each sample."""
    return {
        (batch.view, int(key)): (image, target)
        for batch in found
        for key, image, target in zip(batch.keys, batch.side("student"), batch.target)
    }


@pytest.mark.parametrize("mixing", [Mixup(alpha=0.4), CutMix()], ids=lambda each: each.use)
def test_a_view_hangs_on_seed_sample_and_epoch_alone(mixing):
    known = by_key(batches(mixing, split(LABELLED), size=16, epochs=2, augment=True))
    order = np.random.default_rng(1).permutation(SIZE)
    other = by_key(batches(mixing, split(LABELLED, order), size=7, epochs=2, augment=True))
    assert known.keys() == other.keys()
    for place, (image, target) in known.items():
        assert torch.equal(image, other[place][0])
        torch.testing.assert_close(target, other[place][1], rtol=0, atol=0, equal_nan=True)
    key = int(image_keys(IMAGES)[0])
    assert not torch.equal(known[0, key][0], known[1, key][0])


@pytest.mark.parametrize("mixing", [Mixup(), CutMix()], ids=lambda each: each.use)
def test_both_models_see_one_view(mixing):
    for batch in batches(mixing):
        assert batch.side("student") is batch.side("teacher")
        assert batch.side("student").dtype == (torch.float32 if mixing.between else torch.uint8)


def parts(batch, data, view=0):
    """Own and partner images and labels by the definition, sample by sample."""
    order = np.argsort(data.keys)
    labelled = np.ones(len(data), bool) if data.labelled is None else data.labelled
    for i, key in enumerate(batch.keys):
        own = int(np.flatnonzero(data.keys == key)[0])
        h = keyed(7, "mix", view, np.array([key], np.uint64))
        drawn = int(keyed("partner", h)[0])
        pool = [j for j in order if labelled[j]] if labelled[own] else list(order)
        yield i, own, pool[drawn % len(pool)], h


def test_mixup_by_hand():
    mixing, data = Mixup(alpha=0.4), split(LABELLED)
    for batch in batches(mixing, data):
        for i, own, other, h in parts(batch, data):
            u = (int(keyed("share", h)[0]) >> 11) * 2.0**-53
            share = stats.beta(0.4, 0.4).ppf(u)
            image = share * IMAGES[own].astype(float) + (1 - share) * IMAGES[other].astype(float)
            np.testing.assert_allclose(batch.side("student")[i].numpy(), image.transpose(2, 0, 1), atol=1e-3)
            expected = share * np.eye(CLASSES)[LABELS[own]] + (1 - share) * np.eye(CLASSES)[LABELS[other]]
            expected = expected if LABELLED[own] else np.full(CLASSES, np.nan)
            np.testing.assert_allclose(batch.target[i].numpy(), expected, atol=1e-6)


def test_cutmix_by_hand():
    data, seen = split(), set()
    for batch in batches(CutMix(), data):
        for i, own, other, _ in parts(batch, data):
            image = batch.side("student")[i, 0].numpy()
            a, b = IMAGES[own, :, :, 0], IMAGES[other, :, :, 0]
            assert ((image == a) | (image == b)).all()
            differ = image != a
            rows, columns = np.flatnonzero(differ.any(1)), np.flatnonzero(differ.any(0))
            if len(rows):
                box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
                assert (image[box] == b[box]).all()
            target = batch.target[i].numpy()
            assert target.sum() == pytest.approx(1)
            share = target[LABELS[other]] if LABELS[own] != LABELS[other] else None
            if share is not None:
                assert share * 30 == pytest.approx(round(share * 30), abs=1e-4)
                assert differ.sum() <= round(share * 30) <= differ.sum() + 2
                seen.add(round(share * 30))
    assert len(seen) > 4


def test_boxes_have_the_share_s_area_and_stay_inside():
    hashes = keyed("h", np.arange(4000))
    shares = np.random.default_rng(2).uniform(size=4000)
    top, bottom, left, right = boxes(shares, hashes, 32, 20)
    assert (top >= 0).all()
    assert (top <= bottom).all()
    assert (bottom <= 32).all()
    assert (left >= 0).all()
    assert (left <= right).all()
    assert (right <= 20).all()
    side = 2 * ((32 * np.sqrt(1 - shares)).astype(int) // 2)
    assert (bottom - top <= side).all()
    inner = (top > 0) & (bottom < 32)
    assert (bottom - top == side)[inner].all()


def test_shares_follow_beta():
    hashes = keyed("x", np.arange(5000))
    for alpha in (0.2, 1.0, 4.0):
        found = Mixup(alpha=alpha).shares(hashes)
        assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    half = Mixup(probability=0.5).shares(hashes)
    assert 0.45 < (half == 1).mean() < 0.55


def test_a_teacher_of_another_size_sees_the_same_view():
    problem = task(teacher_size=9, teacher_mean=(0.5,))
    for mixing in (Mixup(), CutMix()):
        plain = batches(mixing)
        for batch, other in zip(batches(mixing, problem=problem), plain, strict=True):
            assert batch.side("student") is batch.side("teacher")
            assert torch.equal(batch.side("teacher"), other.side("teacher"))


def test_labels_do_not_leak_and_none_is_lost():
    data = split(LABELLED)
    changed = np.where(LABELLED, LABELS, (LABELS + 1) % CLASSES)
    other = dataclasses.replace(data, columns={**data.columns, "label": changed})
    for a, b in zip(batches(Mixup(), data), batches(Mixup(), other)):
        torch.testing.assert_close(a.target, b.target, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(~a.target.isnan().any(-1), a.labelled)
    only = batches(Mixup(), data, only="labelled")
    assert sum(map(len, only)) == LABELLED.sum()
    assert not any(batch.target.isnan().any() for batch in only)


def test_augmented_views_are_mixed():
    problem = task(augment=Augment(flip=True, crop=1))
    mixing, data = Mixup(alpha=1.0), split()
    for batch in batches(mixing, data, augment=True, problem=problem):
        for i, own, other, h in parts(batch, data):
            share = mixing.shares(h)[0]
            seeds = keyed(7, "view", 0, data.keys[[own, other]])
            a, b = augmented(IMAGES[[own, other]], seeds, problem.augment).astype(float)
            expected = (share * a + (1 - share) * b).transpose(2, 0, 1)
            np.testing.assert_allclose(batch.side("student")[i].numpy(), expected, atol=1e-3)


def test_the_task_s_loss_of_mixed_targets():
    problem = task()
    logits = torch.randn(16, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for batch in batches(Mixup(), split(LABELLED)):
        outputs = logits[: len(batch)].clone().requires_grad_()
        loss = problem.answer.loss(Outputs(outputs), batch)
        rows = [
            -sum(t * np.log(p) for t, p in zip(target.numpy(), row.softmax(-1).detach().numpy()))
            for target, row in zip(batch.target, outputs)
            if not target.isnan().any()
        ]
        assert loss.item() == pytest.approx(np.mean(rows), abs=1e-6)
        assert int(problem.answer.items(batch)) == len(rows)
        loss.backward()
        assert (outputs.grad[batch.target.isnan().any(-1)] == 0).all()


def test_two_thirds_of_a_source_are_replayed():
    mixer = Mixer(task(), CutMix(), split(), 7)
    source = Batches(split(), mixer.collate, batch_size=16, seed=7, augment=True)
    whole = [*source, *source]
    again = Batches(split(), mixer.collate, batch_size=16, seed=7, augment=True, prefetch=2)
    again.load_state_dict({"epoch": 1, "batch": 2})
    for a, b in zip(whole[6:], again):
        assert torch.equal(a.side("student"), b.side("student"))
        assert torch.equal(a.target, b.target)


def test_what_cannot_be_mixed():
    with pytest.raises(RecipeError, match="mixes images"):
        Mixer(TabularClassification(raw=True, classes=("a", "b")), Mixup(), split(), 0)
    with pytest.raises(RecipeError, match="alpha"):
        Mixup(alpha=0)
