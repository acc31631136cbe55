"""Separable convolutions against NumPy's singular values, exact kernels, closed forms of work, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rewriting_nets import IMAGE, RESNET, answer, built, images, onnx_equals, saved_and_loaded, seeing
from torch import nn

from decoct.errors import PathError, RecipeError
from decoct.meters.macs import macs
from decoct.rewriting.separable import Separable, separated


def effective(both: nn.Sequential) -> np.ndarray:
    """The kernel `[out, in, kh, kw]` of a depthwise and a pointwise convolution in a row."""
    filters, mixing = (each.weight.detach().double().numpy() for each in both)
    inputs = both[0].in_channels
    rank = len(filters) // inputs
    return np.einsum(
        "oir,irhw->oihw",
        mixing[:, :, 0, 0].reshape(len(mixing), inputs, rank),
        filters[:, 0].reshape(inputs, rank, *filters.shape[2:]),
    )


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("size", [(3, 3), (5, 1)])
def test_error_is_the_tail_of_singular_values(rank: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, size).double()
    both, kept = separated(layer, rank)
    kernel = layer.weight.detach().numpy()
    values = [np.linalg.svd(kernel[:, i].reshape(10, -1), compute_uv=False) for i in range(6)]
    tail = sum((each[rank:] ** 2).sum() for each in values)
    total = sum((each**2).sum() for each in values)
    assert np.isclose(((effective(both) - kernel) ** 2).sum(), tail, atol=1e-18)
    assert kept == pytest.approx(1 - tail / total)


def test_no_depthwise_filters_do_better() -> None:
    """Coordinate descent from random filters, each step a least-squares problem of its own, ends no lower."""
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(1, 6, 3).double()
    matrix = layer.weight.detach().numpy().reshape(6, 9)
    best = ((effective(separated(layer, 1)[0]).reshape(6, 9) - matrix) ** 2).sum()
    for _ in range(5):
        filters = rng.normal(size=9)
        for _ in range(300):
            mixing = matrix @ filters / (filters @ filters)
            filters = mixing @ matrix / (mixing @ mixing)
        assert ((np.outer(mixing, filters) - matrix) ** 2).sum() == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("rank", [1, 3])
def test_separable_kernels_stay_what_they_are(padding_mode: str, rank: int) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=2, dilation=2, padding_mode=padding_mode)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("oir,irhw->oihw", torch.randn(16, 8, rank), torch.randn(8, rank, 3, 3)))
    x = images(channels=8)
    found = Separable(rank=rank).apply(nn.Sequential(layer), seeing(x))
    torch.testing.assert_close(answer(found.module, x), answer(nn.Sequential(layer), x), atol=1e-4, rtol=1e-5)
    (change,) = found.changes
    assert (change.path, change.kind, change.before, change.after) == ("0", "weights", 16 * 8 * 9, 8 * rank * (9 + 16))


def test_work_falls_by_the_closed_form() -> None:
    layer = nn.Conv2d(16, 24, 3, padding=1, bias=False)
    found = Separable(rank=2).apply(nn.Sequential(layer), seeing(images(channels=16)))
    x = {"input": torch.zeros(1, 16, 16, 16)}
    assert macs(nn.Sequential(layer), x).total == 16 * 24 * 9 * 256
    assert macs(found.module, x).total == 16 * 2 * (9 + 24) * 256


def test_saved_loaded_and_exported(tmp_path: Path) -> None:
    x = images()
    module = built(RESNET, IMAGE)
    found = Separable().apply(module, seeing(x))
    assert sum(p.numel() for p in found.module.parameters()) < 0.5 * sum(p.numel() for p in module.parameters())
    assert module.layer1[0].conv1.weight.shape == (8, 8, 3, 3)
    saved_and_loaded(tmp_path / "a", found.module, RESNET, IMAGE, lambda each: answer(each, x))
    onnx_equals(tmp_path / "o", found.module, x)
    notes = {each.path: each.note for each in found.changes}
    assert "input channels" in notes["stem.0"]
    assert "1 x 1" in notes["layer2.0.shortcut.0"]
    assert "energy" in notes["layer1.0.conv1"]


def test_fitted_to_data_is_the_least_squares_solution() -> None:
    """NumPy's lstsq on unfolded images gives the same pointwise weights, and a smaller error than the kernel's own."""
    torch.manual_seed(2)
    layer = nn.Conv2d(8, 12, 3, padding=1)
    x = images(6, channels=8) * torch.linspace(0.1, 3, 8)[:, None, None]
    plain = Separable().apply(nn.Sequential(layer), seeing(x)).module
    fitted = Separable(weighted=True).apply(nn.Sequential(layer), seeing(x)).module
    wanted = answer(nn.Sequential(layer), x)
    with torch.no_grad():
        between = fitted[0][0](x).movedim(1, -1).reshape(-1, 8).double().numpy()
    target = (wanted - layer.bias[:, None, None]).detach().movedim(1, -1).reshape(-1, 12).double().numpy()
    solution = np.linalg.lstsq(between, target, rcond=None)[0].T
    np.testing.assert_allclose(fitted[0][1].weight.detach()[:, :, 0, 0].numpy(), solution, rtol=1e-3)
    errors = [float((answer(each, x) - wanted).square().mean()) for each in (plain, fitted)]
    assert errors[1] < errors[0]


def test_refusals() -> None:
    module = built(RESNET, IMAGE)
    x = seeing(images())
    with pytest.raises(RecipeError, match=r"rank.*greater than or equal to 1"):
        Separable(rank=0)
    with pytest.raises(RecipeError, match=r"separable: nothing to rewrite.*conv1: rank is 10, its kernels have 8 at"):
        Separable(rank=10).apply(module, x)
    with pytest.raises(PathError, match=r"layers: no module 'layr1'; did you mean layer1"):
        Separable(layers=("layr1",)).apply(module, x)
    with pytest.raises(RecipeError, match="nothing to rewrite: the chosen layers hold none"):
        Separable(layers=("head",)).apply(module, x)
    with pytest.raises(RecipeError, match="weighted: true needs data"):
        Separable(weighted=True).apply(module, type(x)(x.args))
    found = Separable(protect=("layer1",)).apply(module, x)
    assert type(found.module.layer1[0].conv1) is nn.Conv2d
    assert {each.path: each.note for each in found.changes}["layer1.0.conv1"] == "protected"
