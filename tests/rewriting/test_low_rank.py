"""Low rank against NumPy's singular values: errors, ranks, rounds, data, and files of each kind of network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting_nets import (
    BERT,
    IMAGE,
    RESNET,
    TEXT,
    answer,
    built,
    images,
    onnx_equals,
    saved_and_loaded,
    seeing,
    tokens,
)
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.meters.macs import macs
from decoct.models.base import Interface
from decoct.models.timm import Timm
from decoct.rewriting._factors import as_matrix, directions, split
from decoct.rewriting.low_rank import LowRank


def layer_of(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer in double precision and what it takes."""
    torch.manual_seed(3)
    if kind == "linear":
        return nn.Linear(24, 18).double(), torch.randn(7, 5, 24).double()
    if kind == "embedding":
        return nn.Embedding(30, 12, padding_idx=0).double(), torch.randint(0, 30, (4, 9))
    conv = nn.Conv2d(6, 20, 3, stride=2, padding=1, dilation=2, padding_mode="reflect")
    return conv.double(), torch.randn(3, 6, 11, 11).double()


KINDS = ("linear", "convolution", "embedding")
X12 = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)).double()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_error_is_the_tail_of_singular_values(m: int, n: int, rank: int, seed: int) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(seed)).double()
    left, energies = directions(weight, None)
    inner, outer = split(weight, left[:, :rank])
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    np.testing.assert_allclose(energies.numpy(), values**2, atol=1e-10)
    error = ((outer @ inner - weight).numpy() ** 2).sum()
    assert error == pytest.approx((values[rank:] ** 2).sum(), abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_layers_of_low_rank_stay_what_they_are(kind: str, weighted: bool) -> None:
    layer, x = layer_of(kind)
    matrix = as_matrix(layer)
    assert matrix is not None
    left, _ = directions(matrix.weight, None)
    inner, outer = split(matrix.weight, left[:, :4])
    product = outer @ inner
    with torch.no_grad():
        layer.weight.copy_((product.T if kind == "embedding" else product).reshape(layer.weight.shape))
    module = nn.Sequential(layer)
    found = LowRank(rank=4, weighted=weighted).apply(module, seeing(x))
    torch.testing.assert_close(answer(found.module, x), answer(module, x), atol=1e-5, rtol=0)
    (change,) = found.changes
    assert (change.kind, change.before, change.after) == ("rank", matrix.full, 4)
    m, n = matrix.weight.shape
    taken = sum(each.numel() for each in found.module.parameters()) - (0 if matrix.bias is None else m)
    assert taken == 4 * (m + n) < m * n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_full_rank_is_exact(kind: str, weighted: bool) -> None:
    layer, _ = layer_of(kind)
    matrix = as_matrix(layer)
    assert matrix is not None
    moment = torch.zeros(matrix.full, matrix.full).double() if weighted else None
    left, _ = directions(matrix.weight, moment)
    inner, outer = split(matrix.weight, left)
    torch.testing.assert_close(outer @ inner, matrix.weight, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_makes_the_error_of_outputs_least(kind: str) -> None:
    """The error on the data is the tail of the singular values of W X, by NumPy: what no product of this rank beats."""
    layer, x = layer_of(kind)
    if kind == "linear":
        x = x * torch.linspace(0.01, 4, 24).double()
    module, rank = nn.Sequential(layer), 4
    matrix = as_matrix(layer)
    assert matrix is not None
    plain = LowRank(rank=rank).apply(module, seeing(x)).module
    weighted = LowRank(rank=rank, weighted=True).apply(module, seeing(x)).module
    wanted = answer(module, x)
    given = wanted.movedim(matrix.channel, -1).reshape(-1, len(matrix.weight))
    given = given if matrix.bias is None else given - matrix.bias.detach()
    tail = (np.linalg.svd(given.numpy(), compute_uv=False)[rank:] ** 2).sum()
    errors = [float((answer(each, x) - wanted).square().sum()) for each in (weighted, plain)]
    assert errors[0] == pytest.approx(tail, rel=1e-3)
    assert errors[0] < errors[1]


def test_ranks_by_ratio_and_energy() -> None:
    layer = nn.Linear(64, 96, bias=False)
    module, x = nn.Sequential(layer), torch.randn(4, 64)
    (change,) = LowRank(ratio=0.5).apply(module, seeing(x)).changes
    assert change.after == 16  # 0.5 * 64 * 96 / 160 = 19.2, in eights
    values = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False) ** 2
    enough = int(np.searchsorted(values.cumsum() / values.sum(), 0.6) + 1)
    (change,) = LowRank(energy=0.6, multiple=1).apply(module, seeing(x)).changes
    assert change.after == enough
    (change,) = LowRank(energy=0.6).apply(module, seeing(x)).changes
    assert change.after == -(-enough // 8) * 8
    assert f"{values[: change.after].sum() / values.sum():.4f}" in change.note
    small = LowRank(ratio=0.5).apply(module, seeing(x)).module
    assert macs(small, {"input": x[:1]}).total == 16 * (64 + 96)


def test_rounds_make_up_the_whole() -> None:
    """Each round goes on from the two layers of the one before; the last rank is that of one stroke."""
    module, x = nn.Sequential(nn.Linear(64, 96)), torch.randn(4, 64)
    whole = LowRank(ratio=0.3)
    ranks, work = [], module
    for number in (1, 2, 3):
        found = whole.stage(number, 3).apply(work, seeing(x))
        assert [each.path for each in found.changes] == ["0"]
        ranks.append(found.changes[0].after)
        work = found.module
    at_once = whole.apply(module, seeing(x)).module
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] == 8
    assert [type(each) for each in work[0]] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(answer(work, x), answer(at_once, x), atol=1e-4, rtol=0)
    assert LowRank(energy=0.81).stage(1, 2).energy == pytest.approx(0.9)
    last = whole.apply(work, seeing(x))
    assert last.changes[0].before == last.changes[0].after == 8
    assert torch.equal(answer(last.module, x), answer(work, x))
    with pytest.raises(RecipeError, match="rank is reached at once"):
        LowRank(rank=4).stage(1, 2)


def test_bert_saved_loaded_and_exported(tmp_path: Path) -> None:
    x = tokens()
    module = built(BERT, TEXT)
    found = LowRank(rank=8, weighted=True).apply(module, seeing(**x))
    after = {each.path: each.after for each in found.changes if each.after != each.before}
    assert after["bert.encoder.layer.0.attention.self.query"] == 8
    assert after["bert.embeddings.word_embeddings"] == 8
    saved_and_loaded(tmp_path / "a", found.module, BERT, TEXT, lambda each: answer(each, x))
    onnx_equals(tmp_path / "o", found.module, x)


def test_vit_and_resnet_saved_and_exported(tmp_path: Path) -> None:
    vit = Timm(name="test_vit")
    image = Interface(kind="image", shape=(3, 32, 32), outputs=3)
    for name, spec, interface, x in (
        ("vit", vit, image, images(2, size=32, channels=3)),
        ("resnet", RESNET, IMAGE, images()),
    ):
        found = LowRank(ratio=0.6).apply(built(spec, interface), seeing(x))
        assert any(each.after < each.before for each in found.changes)
        saved_and_loaded(tmp_path / name, found.module, spec, interface, lambda each, x=x: answer(each, x))
        onnx_equals(tmp_path / f"{name}_onnx", found.module, x)


def test_what_stays_says_why() -> None:
    tied = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40, bias=False), nn.Linear(40, 40))
    tied[1].weight = tied[0].weight
    found = LowRank(rank=4, protect=()).apply(tied, seeing(torch.arange(5)))
    notes = {each.path: each.note for each in found.changes}
    assert notes["0"] == notes["1"] == "its weight is shared with another module"
    assert "energy" in notes["2"]
    encoder = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    with pytest.raises(RecipeError, match=r"nothing to rewrite.*linear1: torch's attention and transformer layers"):
        LowRank(rank=4).apply(encoder, seeing(torch.randn(2, 3, 16)))


class Reader(nn.Module):
    """A network whose code reads a layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.inner.weight.dtype))


def test_refusals() -> None:
    module, x = nn.Sequential(nn.Linear(8, 8)), seeing(torch.randn(2, 8))
    with pytest.raises(RecipeError, match=r"give one of rank, ratio, energy \(given: rank, energy\)"):
        LowRank(rank=2, energy=0.5)
    with pytest.raises(RecipeError, match="ratio"):
        LowRank(ratio=1.5)
    with pytest.raises(RecipeError, match=r"nothing to rewrite. 0: rank 9 would take 144 weights, it has 64"):
        LowRank(rank=9).apply(module, x)
    with pytest.raises(RecipeError, match=r"too small: ratio 0.5 of it leaves no rank of 8"):
        LowRank().apply(module, x)
    with pytest.raises(RecipeError, match=r"does not run with inner replaced.*protect"):
        LowRank().apply(Reader(), seeing(torch.randn(2, 32)))


def test_a_rank_that_saves_nothing_is_not_taken() -> None:
    """At rank 2 the two layers of one of 4 x 4 would have as many weights as it has."""
    module = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 4), nn.Linear(4, 12)).double()
    found = {each.path: each for each in LowRank(rank=2).apply(module, seeing(X12)).changes}
    assert found["1"].note == "rank 2 would take 16 weights, it has 16"
    assert [found[path].after for path in "012"] == [2, 4, 2]


def test_the_energy_that_is_asked_for_is_reached_and_no_rank_is_spare() -> None:
    weight = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.25, 0.25])).double()
    layer = nn.Linear(12, 12).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    squares = np.square(np.diag(weight.numpy()))
    for rank in (1, 2, 3, 4):
        share = float(squares[:rank].sum() / squares.sum())
        for energy, wanted in ((share, rank), (float(np.nextafter(share, 0)), rank), (share + 1e-6, rank + 1)):
            scheme = LowRank(energy=energy, multiple=1)
            changes = {each.path: each for each in scheme.apply(nn.Sequential(layer), seeing(X12)).changes}
            assert changes["0"].after == wanted


def test_a_pair_of_the_rank_that_is_asked_for_is_done() -> None:
    pair = nn.Sequential(nn.Linear(12, 2, bias=False), nn.Linear(2, 12))
    module = nn.Sequential(pair, nn.Linear(12, 12)).double()
    found = {each.path: each for each in LowRank(rank=2).apply(module, seeing(X12)).changes}
    assert found["0"].note == "it has rank 2 already"
    assert (found["0"].before, found["0"].after) == (2, 2)
