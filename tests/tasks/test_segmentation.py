"""Segmentation: masks that move with their images, the loss and scores against oracles, one grid for both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import nn

import decoct as dc
from decoct.data.base import Data, Dataset, Split
from decoct.data.hashing import image_keys
from decoct.data.splits import assemble
from decoct.errors import DataError, RecipeError
from decoct.models.base import Interface, Network
from decoct.models.onnx_file import open_session
from decoct.models.small_unet import SmallUNet
from decoct.outputs import Batch, Dense, Needs, Outputs
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.layout import Layout
from decoct.targets.onnx import Onnx
from decoct.tasks.answers.maps import Maps, moved, on_grid
from decoct.tasks.inputs.augment import Augment, augmented, placed
from decoct.tasks.segmentation import Segmentation

HEIGHT, WIDTH, CLASSES = 10, 14, 4
NAMES = ("a", "b", "c", "d")


class Made(Data):
    """Made by a test."""

    use = "made"

    def open(self, *, offline: bool = False) -> Dataset:
        raise AssertionError("made by hand")


def split_of(count: int, seed: int) -> Split:
    """Squares of grey values on noise: the class of a pixel is its brightness, a tenth have none."""
    drawn = np.random.default_rng(seed)
    coarse = drawn.integers(0, CLASSES, (count, HEIGHT // 2, WIDTH // 2))
    mask = coarse.repeat(2, 1).repeat(2, 2).astype(np.uint8)
    image = (mask[..., None] * 60 + drawn.integers(0, 30, (count, HEIGHT, WIDTH, 3))).astype(np.uint8)
    mask[drawn.random(mask.shape) < 0.1] = 255
    return Split({"image": image, "mask": mask}, image_keys(image))


@pytest.fixture(scope="module")
def data() -> Dataset:
    splits = {name: split_of(count, seed) for seed, (name, count) in enumerate({"train": 24, "test": 12}.items())}
    return assemble(Made(labels=12, validation=0.0), splits, classes=NAMES)


@pytest.fixture(scope="module")
def task(data: Dataset) -> Segmentation:
    return Segmentation(augment=Augment(flip=True, crop=3)).resolve(data)


def batch_of(task: Segmentation, data: Dataset, count: int = 6, *, view: bool = False, split: str = "test") -> Batch:
    seeds = np.arange(count, dtype=np.uint64) * 7919 if view else None
    return task.collate(data.splits[split], np.arange(count), seeds=seeds)


def said(seed: int, *shape: int) -> Outputs:
    return Outputs(Dense(torch.randn(*shape, CLASSES, generator=torch.Generator().manual_seed(seed))))


def test_resolving_takes_names_and_grid_and_is_done_once(task: Segmentation, data: Dataset) -> None:
    assert (task.classes, task.grid) == (NAMES, (HEIGHT, WIDTH))
    assert task.resolve(data) == task
    assert task.reading("student").interface.per_pixel
    assert task.reading("student").outputs["logits"].shape == (HEIGHT, WIDTH, CLASSES)
    with pytest.raises(RecipeError, match=r"task\.grid: \(3, 4\), and the masks are \(10, 14\)"):
        Segmentation(grid=(3, 4)).resolve(data)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    st.booleans(),
    st.integers(0, 4),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_a_mask_moves_exactly_as_its_image(seeds: list[int], flip: bool, crop: int, height: int, width: int) -> None:
    """The image shows the id of its mask plus one, so that what comes from outside is 0."""
    keys = np.array(seeds, np.uint64)
    mask = np.random.default_rng(0).integers(0, 9, (len(keys), height, width)).astype(np.uint8)
    augment = Augment(flip=flip, crop=crop)
    wanted = augmented(mask[..., None] + 1, keys, augment)[..., 0].astype(np.int64) - 1
    found = moved(torch.from_numpy(mask).long(), torch.from_numpy(placed(keys, augment, width)), -1)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_any_affine_map_takes_the_nearest_pixel() -> None:
    """Against a loop in float64: a turn by 30 degrees, a scale and a shift."""
    matrix = np.array([[[0.9, -0.5, 2.25], [0.4, 1.1, -1.5]]])
    mask = np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH)
    wanted = np.full_like(mask, -7)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            source = np.linalg.solve(matrix[0, :, :2], np.array([x, y]) - matrix[0, :, 2])
            column, row = np.rint(source).astype(int)
            if 0 <= row < HEIGHT and 0 <= column < WIDTH:
                wanted[0, y, x] = mask[0, row, column]
    np.testing.assert_array_equal(moved(torch.from_numpy(mask), torch.from_numpy(matrix), -7).numpy(), wanted)


def test_targets_of_a_view_are_those_of_its_pixels(task: Segmentation, data: Dataset) -> None:
    batch = batch_of(task, data, view=True)
    pixels, target = batch.side("student"), batch.target
    assert target.dtype == torch.int64
    assert not torch.equal(target, batch_of(task, data).target)
    known = target != -100
    torch.testing.assert_close(pixels[:, 0][known].long() // 60, target[known])
    inside = task.answer.kept(batch, "items")
    assert inside is not None
    assert not bool(known[~inside].any()), "what was moved in from outside has no class"
    assert bool((pixels.sum(1)[~inside] == 0).all())
    assert 0 < int((~inside).sum()) < inside.numel() // 2
    assert task.answer.kept(batch_of(task, data), "items") is None


def test_what_counts_is_known_before_a_forward_pass(task: Segmentation, data: Dataset) -> None:
    batch = batch_of(task, data, 24, split="train")
    masks, labelled = data.splits["train"].columns["mask"], data.splits["train"].labelled
    assert labelled is not None
    wanted = (masks != 255) & labelled[:, None, None]
    kept = task.answer.kept(batch, "labelled")
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), wanted)
    assert int(task.answer.items(batch)) == wanted.sum()
    assert bool((batch.target[~torch.from_numpy(labelled)] == -100).all()), "hidden masks never leave the split"


def test_the_loss_is_the_mean_over_pixels_that_have_a_class(task: Segmentation, data: Dataset) -> None:
    batch = batch_of(task, data, 24, split="train")
    outputs = said(0, 24, HEIGHT, WIDTH)
    logits = outputs.logits.double().numpy()
    log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = [-log_q[i][batch.target[i] >= 0, batch.target[i][batch.target[i] >= 0]] for i in range(24)]
    assert task.answer.loss(outputs, batch).item() == pytest.approx(np.concatenate(rows).mean(), rel=1e-6)
    parts = [np.arange(5), np.arange(5, 24)]
    weighed = sum(
        task.answer.loss(outputs.take(part, 24), batch.take(part)) * task.answer.items(batch.take(part))
        for part in parts
    )
    torch.testing.assert_close(weighed / task.answer.items(batch), task.answer.loss(outputs, batch))
    nothing = Batch(batch.inputs, task.answer.missing(24), torch.zeros(24, dtype=torch.bool))
    leaf = outputs.logits.clone().requires_grad_()
    loss = task.answer.loss(Outputs(Dense(leaf)), nothing)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


def bilinear(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """`[B, h, w, C]` at another size, pixel centres at halves, edges repeated; float64, from the definition."""

    def weights(new: int, old: int) -> np.ndarray:
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(place.astype(int), old - 1)
        found = np.zeros((new, old))
        found[np.arange(new), low] += 1 - (place - low)
        found[np.arange(new), np.minimum(low + 1, old - 1)] += place - low
        return found

    rows, columns = weights(height, maps.shape[1]), weights(width, maps.shape[2])
    return np.einsum("yh,xw,bhwc->byxc", rows, columns, maps)


class Coarse(nn.Module):
    """A map of a fifth and a seventh of the pixels, as a mapping (torchvision) or a tensor."""

    def __init__(self, mapping: bool = False) -> None:
        super().__init__()
        self.convolution, self.mapping = nn.Conv2d(3, CLASSES, (5, 7), (5, 7)), mapping

    def forward(self, x: torch.Tensor) -> Any:
        maps = self.convolution(x)
        return {"out": maps, "aux": maps} if self.mapping else maps


@pytest.mark.parametrize("mapping", [False, True])
def test_a_coarse_map_is_brought_to_the_grid_alike_in_training_and_in_the_file(
    mapping: bool, task: Segmentation, data: Dataset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, batch, reading = Coarse(mapping).eval(), batch_of(task, data, 3), task.reading("student")
    network = Network(module, SmallUNet(), reading.interface)
    found = reading.forward(network, batch, Needs(features=frozenset(("convolution",))))
    maps = found.features["convolution"]
    assert maps.shape == (3, CLASSES, 2, 2)
    wanted = bilinear(maps.detach().double().permute(0, 2, 3, 1).numpy(), HEIGHT, WIDTH)
    np.testing.assert_allclose(found.logits.detach().numpy(), wanted, atol=1e-5)
    path = Onnx().write(reading.programs(module), tmp_path)["model"]
    for part in (np.arange(3), np.arange(1)):
        answer = open_session(path)(reading.feed(batch.take(part)))
        again = reading.from_file(answer, batch.take(part))
        np.testing.assert_allclose(again.logits.numpy(), wanted[part], atol=2e-5)


def test_teachers_of_another_size_answer_on_the_same_grid(data: Dataset) -> None:
    task = Segmentation(size=12, teacher_size=9).resolve(data)
    batch = batch_of(task, data, 2)
    for reader, side in (("student", 12), ("teacher", 9)):
        reading = task.reading(reader)
        assert reading.interface.shape == (3, side, side)
        network = Network(SmallUNet(widths=(4, 4)).build(reading.interface).eval(), SmallUNet(), reading.interface)
        assert reading.forward(network, batch, Needs()).logits.shape == (2, HEIGHT, WIDTH, CLASSES)


def test_scores_are_those_of_scikit_learn_batch_by_batch(task: Segmentation, data: Dataset) -> None:
    tally, whole = task.answer.tally(), batch_of(task, data, 12)
    outputs, other = said(1, 12, HEIGHT, WIDTH), said(2, 12, HEIGHT, WIDTH)
    outputs.logits[..., 3] -= 9  # a class that is never answered
    for part in (np.arange(5), np.arange(5, 6), np.arange(6, 12)):
        tally.add(whole.take(part), outputs.take(part, 12), other.take(part, 12))
    found = tally.scores()
    counted = whole.target.numpy() != -100
    labels, answers = whole.target.numpy()[counted], outputs.logits.argmax(-1).numpy()[counted]
    assert list(found.quality) == ["miou", "pixel_accuracy", "cross_entropy"]
    assert found.quality["miou"] == pytest.approx(jaccard_score(labels, answers, average="macro"), rel=1e-12)
    np.testing.assert_allclose(list(found.per_class.values()), jaccard_score(labels, answers, average=None))
    assert found.quality["pixel_accuracy"] == pytest.approx((labels == answers).mean(), rel=1e-12)
    loss = nn.functional.cross_entropy(outputs.logits[torch.from_numpy(counted)].double(), torch.from_numpy(labels))
    assert found.quality["cross_entropy"] == pytest.approx(loss.item(), rel=1e-12)
    assert found.confusion is not None
    assert found.confusion[1].sum() == counted.sum()
    log_p, log_q = (each.logits.double().log_softmax(-1) for each in (other, outputs))
    assert found.fidelity["kl"] == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-12)
    same = (other.logits.argmax(-1) == outputs.logits.argmax(-1)).double().mean().item()
    assert found.fidelity["agreement"] == pytest.approx(same, rel=1e-12)


def test_a_class_that_is_nowhere_does_not_count_and_nothing_labelled_is_refused() -> None:
    answer = Maps(classes=NAMES, grid=(1, 2))
    batch = Batch({"student": torch.zeros(1, 3, 1, 2)}, torch.tensor([[[0, 1]]]))
    logits = torch.tensor([[[[5.0, 0, 0, 0], [5.0, 0, 0, 0]]]])
    tally = answer.tally()
    tally.add(batch, Outputs(Dense(logits)))
    assert tally.scores().quality["miou"] == pytest.approx((0.5 + 0) / 2)
    assert set(tally.scores().per_class) == {"a", "b"}
    empty = answer.tally()
    empty.add(Batch(batch.inputs, answer.missing(1)), Outputs(Dense(logits)))
    with pytest.raises(DataError, match="no labelled pixel"):
        empty.scores()


def test_wrong_maps_and_masks_are_told(task: Segmentation, data: Dataset) -> None:
    answer, batch = task.answer, batch_of(task, data, 2)
    with pytest.raises(RecipeError, match=r"logits \[2, 4\]; expected one map for each class, \[batch, 4, height"):
        answer.outputs(Outputs(Dense(torch.zeros(2, 4))), batch, "student")
    with pytest.raises(DataError, match=r"masks hold \[4\]; classes are 0 to 3, and 255"):
        answer.given(torch.full((1, 2, 2), 4))
    with pytest.raises(RecipeError, match=r"expected class ids, int64 \[batch, height, width\]"):
        answer.given(torch.zeros(2, 3))
    with pytest.raises(RecipeError, match=r"task\.grid: not known"):
        Maps(classes=NAMES).missing(2)
    assert answer.given(torch.tensor([[[255, 1]]])).tolist() == [[[-100, 1]]]
    with pytest.raises(RecipeError, match="cannot be mixed"):
        answer.mixed(batch, batch, torch.ones(2))
    without = Dataset({"train": Split({"image": data.splits["train"].columns["image"]}, data.splits["train"].keys)}, "")
    with pytest.raises(RecipeError, match="the data hold no masks"):
        Segmentation().resolve(without)


def test_a_store_keeps_three_classes_of_a_pixel_unless_another_way_is_said(task: Segmentation) -> None:
    codec = task.answer.codec(DenseCodec())
    assert codec == TopKCodec(k=3, dtype="float16", temperatures=(1.0,))
    for asked in (DenseCodec(dtype="float32"), TopKCodec(k=2)):
        assert task.answer.codec(asked) == asked
    outputs = said(3, 2, HEIGHT, WIDTH)
    layout = Layout.of(outputs, codec)
    assert layout.width - 20 == (1 + 6 + 4) * HEIGHT * WIDTH
    rows = layout.encode(outputs, seen=np.arange(2), keys=np.arange(2))
    top = layout.decode(rows.cells).top
    assert top is not None
    wanted = outputs.logits.log_softmax(-1).topk(3)
    assert torch.equal(top.ids, wanted.indices)
    torch.testing.assert_close(top.log_probs, wanted.values, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(top.rest.exp().squeeze(-1), 1 - wanted.values.exp().sum(-1), atol=1e-5, rtol=1e-4)


def test_made_up_answers_have_the_right_shape(task: Segmentation, data: Dataset) -> None:
    assert task.answer.zeros(batch_of(task, data, 3)).logits.shape == (3, HEIGHT, WIDTH, CLASSES)
    maps = torch.rand(1, 2, 3, 4)
    assert on_grid(maps, (3, 4)) is maps


def test_nets_for_whole_images_are_refused_and_the_other_way_round(task: Segmentation) -> None:
    interface = task.reading("student").interface
    for model in (dc.SmallResNet(), dc.SmallMobileNet(), dc.SmallViT()):
        with pytest.raises(RecipeError, match=f"{model.use} answers for each image, the task wants an answer for each"):
            model.build(interface)
    with pytest.raises(RecipeError, match="small_unet answers for each pixel, the task wants an answer for each image"):
        SmallUNet().build(Interface(kind="image", shape=(3, 8, 8), outputs=2))
