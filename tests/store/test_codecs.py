"""Codecs: round trips within their bounds, tails that add up, draws that are unbiased and replayable."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from decoct.data.hashing import keyed
from decoct.errors import DataError, RecipeError
from decoct.outputs import TopK
from decoct.spec import Choice
from decoct.store.codecs.affine import quantized, restored
from decoct.store.codecs.base import Codec
from decoct.store.codecs.bits import bits_for, pack, packed_bytes, unpack
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec

SEEDS = st.integers(0, 2**32 - 1)


def rows(seed: int, count: int, classes: int, scale: float = 3.0, holes: float = 0.0) -> torch.Tensor:
    """Random logits; with `holes` a part is -inf, never the first class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * scale
    gone = torch.rand(count, classes, generator=generator) < holes
    gone[:, 0] = False
    return logits.masked_fill(gone, -torch.inf)


def keys(count: int, salt: int = 0) -> np.ndarray:
    return keyed("test", salt, np.arange(count))


def there_and_back(codec: Codec, logits: torch.Tensor) -> torch.Tensor | TopK:
    columns = codec.encode(logits, keys(len(logits)))
    assert {name: each.shape[1] for name, each in columns.items()} == codec.columns(logits.shape[1])
    assert all(each.dtype == np.uint8 and len(each) == len(logits) for each in columns.values())
    return codec.decode(columns, logits.shape[1])


@given(st.data(), st.integers(1, 2**18), st.integers(1, 70), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_bits(data: st.DataObject, classes: int, count: int, samples: int) -> None:
    bits = bits_for(classes)
    assert bits == max(1, math.ceil(math.log2(classes)))
    generator = np.random.default_rng(data.draw(SEEDS))
    ids = generator.integers(0, classes, (samples, count))
    ids[: samples // 2, -1] = classes - 1
    packed = pack(ids, bits)
    assert packed.shape == (samples, packed_bytes(count, bits))
    np.testing.assert_array_equal(unpack(packed, count, bits), ids)


@given(SEEDS, st.integers(1, 300), st.integers(0, 5), st.floats(0, 0.9), st.sampled_from([1e-3, 1.0, 30.0, 1e5]))
@settings(max_examples=60, deadline=None)
def test_float32_is_kept_bit_for_bit(seed: int, classes: int, count: int, holes: float, scale: float) -> None:
    logits = rows(seed, count, classes, scale, holes)
    decoded = there_and_back(DenseCodec(dtype="float32"), logits)
    assert isinstance(decoded, torch.Tensor)
    assert decoded.shape == logits.shape
    np.testing.assert_array_equal(decoded.numpy().view(np.uint32), logits.numpy().view(np.uint32))


@given(SEEDS, st.integers(1, 300), st.floats(0, 0.9), st.sampled_from([1e-3, 1.0, 30.0, 1e5, 1e30]))
@settings(max_examples=80, deadline=None)
def test_float16_keeps_distances_from_the_largest(seed: int, classes: int, holes: float, scale: float) -> None:
    logits = rows(seed, 3, classes, scale, holes)
    decoded = there_and_back(DenseCodec(), logits)
    assert isinstance(decoded, torch.Tensor)
    exact, found = logits.double(), decoded.double()
    np.testing.assert_array_equal(exact == -np.inf, found == -np.inf)
    kept = exact != -np.inf
    below = exact.amax(-1, keepdim=True) - exact
    bound = below * 2**-11 + 2**-24 + exact.abs().amax(-1, keepdim=True) * 2**-22
    near = kept & (below < 65504)
    assert ((found - exact).abs() <= bound)[near].all()
    far = kept & (below >= 65504)
    assert (found <= exact.amax(-1, keepdim=True) - 65000)[far & (exact.abs().amax(-1, keepdim=True) < 1e8)].all()
    assert torch.equal(decoded.amax(-1), logits.amax(-1))


@given(SEEDS, st.integers(1, 300), st.floats(0, 0.9), st.sampled_from([0.0, 1e-3, 1.0, 15.0]), st.floats(-1e3, 1e3))
@settings(max_examples=80, deadline=None)
def test_uint8_within_half_a_step(seed: int, classes: int, holes: float, scale: float, shift: float) -> None:
    logits = rows(seed, 3, classes, scale, holes) + shift
    decoded = there_and_back(DenseCodec(dtype="uint8"), logits)
    assert isinstance(decoded, torch.Tensor)
    kept = logits != -torch.inf
    assert torch.equal(kept, decoded != -torch.inf)
    lowest = logits.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    step = (logits.amax(-1, keepdim=True) - lowest).double() / 254
    error = (decoded.double() - logits.double()).abs()
    assert (error <= step * 0.5001 + logits.abs().nan_to_num(posinf=0.0).amax() * 2**-22)[kept].all()
    assert torch.equal(decoded.amax(-1), logits.amax(-1))


def test_a_mask_of_minus_a_billion_costs_no_precision() -> None:
    logits = rows(0, 4, 50)
    masked = logits.clone()
    masked[:, 40:] = -1e9
    for codec in (DenseCodec(), DenseCodec(dtype="uint8")):
        decoded = there_and_back(codec, masked)
        assert isinstance(decoded, torch.Tensor)
        exact = masked.double().softmax(-1)
        assert (decoded.double().softmax(-1) - exact).abs().max() < 0.01
        assert decoded[:, 40:].softmax(-1).shape == (4, 10)
        assert (decoded[:, 40:] < decoded[:, :40].amin()).all()


@pytest.mark.parametrize("codec", [DenseCodec(), DenseCodec(dtype="float32"), TopKCodec(k=2)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_logit_is_refused(codec: Codec, bad: float) -> None:
    logits = rows(0, 3, 5)
    logits[1, 2] = bad
    with pytest.raises(DataError, match="1 of 3 rows"):
        codec.encode(logits, keys(3))
    with pytest.raises(DataError, match="nothing but -inf"):
        codec.encode(torch.full((1, 4), -torch.inf), keys(1))
    with pytest.raises(DataError, match="rows"):
        codec.encode(torch.zeros(3), keys(3))


@given(SEEDS, st.integers(1, 400), st.integers(1, 80), st.floats(0, 0.9), st.sampled_from([0.1, 3.0, 100.0]))
@settings(max_examples=120, deadline=None)
def test_top_k_against_scipy(seed: int, classes: int, k: int, holes: float, scale: float) -> None:
    """Log-probabilities, and tail sums at each temperature, by SciPy's logsumexp in float64."""
    temperatures = (1.0, 2.0, 4.0, 3.0, 0.5)
    logits = rows(seed, 3, classes, scale, holes)
    codec = TopKCodec(k=k, dtype="float32", temperatures=temperatures)
    top = there_and_back(codec, logits)
    assert isinstance(top, TopK)
    assert top.temperatures == (1.0, 0.5, 2.0, 3.0, 4.0)
    exact = logits.double().numpy()
    exact = exact - logsumexp(exact, axis=-1, keepdims=True)
    order = -np.sort(-exact, axis=-1)
    kept = min(k, classes)
    np.testing.assert_allclose(top.log_probs.numpy(), order[:, :kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, top.ids.numpy(), -1), order[:, :kept], rtol=1e-6, atol=1e-6)
    tail = exact.copy()
    np.put_along_axis(tail, top.ids.numpy(), -np.inf, -1)
    for column, temperature in enumerate(top.temperatures):
        with np.errstate(divide="ignore"):
            expected = logsumexp(tail / temperature, axis=-1)
        np.testing.assert_allclose(top.rest[:, column].numpy(), expected, rtol=1e-5, atol=2e-5)
    assert all(len(set(row)) == kept for row in top.ids.tolist())


@given(SEEDS, st.integers(1, 3000), st.integers(1, 80), st.floats(0, 0.9))
@settings(max_examples=80, deadline=None)
def test_uint8_log_probabilities_keep_their_mass(seed: int, classes: int, k: int, holes: float) -> None:
    """Never renormalised: kept and tail sum to 1, each log-probability is within one step."""
    logits = rows(seed, 3, classes, holes=holes)
    top, exact = (there_and_back(TopKCodec(k=k, dtype=dtype), logits) for dtype in ("uint8", "float32"))
    assert isinstance(top, TopK)
    assert isinstance(exact, TopK)
    assert torch.equal(top.ids, exact.ids)
    assert torch.equal(top.rest, exact.rest)
    mass = top.log_probs.double().exp().sum(-1) + top.rest[:, 0].double().exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=3e-6)
    kept = exact.log_probs != -torch.inf
    assert torch.equal(kept, top.log_probs != -torch.inf)
    lowest = exact.log_probs.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    step = (exact.log_probs.amax(-1, keepdim=True) - lowest) / 254
    assert ((top.log_probs - exact.log_probs).abs() <= step + 1e-5)[kept].all()
    assert (top.log_probs[:, 1:] <= top.log_probs[:, :-1]).all()


def test_all_classes_have_an_empty_tail() -> None:
    logits = rows(1, 4, 7)
    for tail in ("bucket", "uniform", "sample"):
        codec = TopKCodec(k=9, tail=tail, dtype="float32")
        decoded = there_and_back(codec, logits)
        if isinstance(decoded, TopK):
            assert (decoded.rest == -torch.inf).all()
            assert decoded.drawn is None
            decoded = decoded.spread()
        torch.testing.assert_close(decoded, logits.log_softmax(-1))
    one = there_and_back(TopKCodec(k=3), torch.tensor([[2.0]]))
    assert isinstance(one, TopK)
    assert one.ids.tolist() == [[0]]
    assert one.log_probs.tolist() == [[0.0]]


@given(SEEDS, st.integers(2, 500), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_uniform_tail_has_the_mass_of_the_tail(seed: int, classes: int, k: int) -> None:
    logits = rows(seed, 3, classes)
    decoded = there_and_back(TopKCodec(k=k, tail="uniform"), logits)
    assert isinstance(decoded, torch.Tensor)
    p = logits.double().softmax(-1)
    largest, ids = p.topk(min(k, classes), dim=-1)
    q = decoded.double().exp()
    torch.testing.assert_close(q.sum(-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=3e-6)
    outside = torch.ones_like(q, dtype=torch.bool).scatter(-1, ids, False)
    torch.testing.assert_close(q[outside].reshape(3, -1).sum(-1), 1 - largest.sum(-1), rtol=1e-3, atol=3e-6)
    for row, mask in zip(q, outside):
        assert len(set(row[mask].tolist())) <= 1


def test_draws_are_unbiased_and_of_the_tail() -> None:
    """The mean over many keys nears p; drawn by chance, the largest error stays within five standard errors."""
    classes, draws, trials = 30, 4, 20_000
    logits = rows(3, 1, classes).expand(trials, classes)
    codec = TopKCodec(k=3, tail="sample", draws=draws, dtype="float32")
    top = codec.decode(codec.encode(logits, keys(trials)), classes)
    assert isinstance(top, TopK)
    assert top.drawn is not None
    assert top.drawn_log_probs is not None
    assert not (top.drawn[:, :, None] == top.ids[:, None, :]).any()
    p = logits[:1].double().softmax(-1)[0]
    np.testing.assert_allclose(top.drawn_log_probs.exp().numpy(), p[top.drawn].numpy(), rtol=1e-4)
    share = top.rest[0, 0].double().exp() / draws
    found = torch.bincount(top.drawn.flatten(), minlength=classes) * share / trials
    found[top.ids[0]] = top.log_probs[0].double().exp()
    tail = p.clone()
    tail[top.ids[0]] = 0
    error = 5 * (tail * tail.sum() / (draws * trials)).sqrt() + 1e-6
    assert ((found - p).abs() <= error).all()
    assert (found - p).abs().sum() < 0.02


def test_draws_hang_on_the_key_alone() -> None:
    logits, seen = rows(4, 6, 40), keys(6)
    codec = TopKCodec(k=3, tail="sample", draws=5)
    whole = codec.encode(logits, seen)
    order = np.array([4, 1, 5])
    part = codec.encode(logits[order], seen[order])
    for name, column in part.items():
        np.testing.assert_array_equal(column, whole[name][order])
    other = codec.encode(logits, keys(6, salt=1))
    assert (other["drawn"] != whole["drawn"]).any()
    np.testing.assert_array_equal(other["ids"], whole["ids"])


def test_a_tail_without_mass_draws_what_is_finite() -> None:
    logits = torch.full((2, 9), -torch.inf)
    logits[:, 4:6] = torch.tensor([1.0, 2.0])
    top = there_and_back(TopKCodec(k=3, tail="sample", draws=2), logits)
    assert isinstance(top, TopK)
    assert top.drawn is not None
    assert top.drawn.tolist() == [[5, 5], [5, 5]]
    assert (top.rest == -torch.inf).all()
    assert (top.log_probs[:, 2] == -torch.inf).all()


def test_a_very_confident_tail_is_not_lost() -> None:
    """The tail's mass is exp(-200), which 1 minus the rest would give as 0 or less."""
    top = there_and_back(TopKCodec(k=1), torch.tensor([[200.0, 0.0, -5.0]]))
    assert isinstance(top, TopK)
    assert top.rest[0, 0].item() == pytest.approx(-200 + math.log1p(math.exp(-5)), rel=1e-6)


def test_what_was_lost() -> None:
    """Against closed forms: KL of what decodes, kept mass of the k largest."""
    logits = rows(5, 8, 60)
    p = logits.double().softmax(-1)
    for codec in (DenseCodec(), DenseCodec(dtype="uint8"), TopKCodec(k=6, tail="uniform")):
        decoded = there_and_back(codec, logits)
        assert isinstance(decoded, torch.Tensor)
        expected = (p * (p.log() - decoded.double().log_softmax(-1))).sum(-1).mean().item()
        assert codec.lost(logits, decoded).kl == pytest.approx(expected, abs=1e-12)
    assert DenseCodec().lost(logits, there_and_back(DenseCodec(), logits)).kl < 1e-6
    lossless = DenseCodec(dtype="float32")
    assert lossless.lost(logits, there_and_back(lossless, logits)).kl == 0.0
    top = TopKCodec(k=6)
    lost = top.lost(logits, there_and_back(top, logits))
    assert lost.kept_mass == pytest.approx(p.topk(6).values.sum(-1).mean().item())
    spread = there_and_back(TopKCodec(k=6, tail="uniform"), logits)
    assert isinstance(spread, torch.Tensor)
    even = (p * (p.log() - spread.double().log_softmax(-1))).sum(-1).mean().item()
    assert lost.kl == pytest.approx(even, rel=1e-4)
    assert "spread evenly" in lost.note


def test_sizes() -> None:
    """At 32,000 classes and k = 64: 204 bytes a row, less than a hundredth of float32."""
    widths = TopKCodec(k=64).columns(32_000)
    assert widths == {"ids": 120, "log_probs": 64, "affine": 8, "rest": 12}
    assert sum(widths.values()) + 20 + 16 <= 4 * 32_000 / 100
    assert TopKCodec(k=64).width(32_000) == 204
    assert DenseCodec().width(10) == 24
    assert DenseCodec(dtype="uint8").width(1000) == 1008


def test_recipes() -> None:
    """Settings are checked, and plain data makes the same codec again."""
    for codec in (DenseCodec(dtype="uint8"), TopKCodec(8, tail="sample", draws=3, temperatures=(4,))):
        assert Choice("decoct.store.codecs").validate(codec.plain()) == codec
        assert eval(repr(codec)) == codec
    assert TopKCodec(8, temperatures=(4, 2)).temperatures == (1.0, 2.0, 4.0)
    with pytest.raises(RecipeError, match="above 0"):
        TopKCodec(8, temperatures=(0.0,))
    with pytest.raises(RecipeError, match="k"):
        TopKCodec(0)


def test_half_precision_and_numpy_are_taken() -> None:
    logits = rows(8, 3, 12)
    for given_logits in (logits.bfloat16(), logits.bfloat16().float().numpy()):
        decoded = there_and_back(DenseCodec(dtype="float32"), torch.as_tensor(given_logits))
        assert isinstance(decoded, torch.Tensor)
        assert torch.equal(decoded, logits.bfloat16().float())


def test_no_rows() -> None:
    for codec in (
        DenseCodec(),
        DenseCodec(dtype="uint8"),
        TopKCodec(k=2, tail="sample"),
        TopKCodec(k=2, tail="uniform"),
    ):
        assert len(there_and_back(codec, torch.zeros(0, 5))) == 0


def test_large_batches_are_encoded_in_parts() -> None:
    """As if each part were given alone; a bad row in a later part is found too."""
    logits = rows(9, 700, 2000)
    for tail in ("bucket", "sample"):
        codec = TopKCodec(5, tail=tail)  # type: ignore[arg-type]
        whole = codec.encode(logits, keys(700))
        for start in (0, 650):
            part = codec.encode(logits[start : start + 50], keys(700)[start : start + 50])
            for name, column in part.items():
                np.testing.assert_array_equal(column, whole[name][start : start + 50])
    logits[699, 3] = math.nan
    with pytest.raises(DataError, match="NaN"):
        TopKCodec(5).encode(logits, keys(700))


def test_256_below_the_largest_is_kept_and_what_lies_below_that_is_minus_infinity() -> None:
    below = math.nextafter(-256.0, -math.inf)
    values = torch.tensor(
        [[0.0, -128.0, -256.0], [0.0, -128.0, float(np.nextafter(np.float32(-256), np.float32(-999)))]]
    )
    assert values[1, 2] < below
    found = restored(*quantized(values))
    assert found[0].tolist() == pytest.approx([0.0, -128.0, -256.0], abs=1e-4)
    assert found[1].tolist() == pytest.approx([0.0, -128.0, -math.inf])


@pytest.mark.parametrize("k", [0, 6])
def test_as_many_as_there_are_classes_can_be_kept_and_no_more(k: int) -> None:
    logits = rows(3, 2, 5)
    whole = TopK.of(logits, 5)
    assert torch.isneginf(whole.rest).all()
    assert torch.equal(whole.log_probs.exp().sum(-1).round(decimals=5), torch.ones(2))
    with pytest.raises(RecipeError, match=f"top_k is {k}; allowed: 1 to the number of classes, 5"):
        TopK.of(logits, k)


@pytest.mark.parametrize("temperature", [1.001, 1.005, 1.995, 2.01])
def test_a_temperature_near_a_known_one_is_not_taken_for_it(temperature: float) -> None:
    logits = rows(4, 3, 50).double()
    top = TopK.of(logits, 4, temperatures=(1.0, 2.0))
    others = logits.log_softmax(-1).numpy().copy()
    np.put_along_axis(others, top.ids.numpy(), -np.inf, axis=1)
    exact = logsumexp(others / temperature, axis=1)
    known = min((1.0, 2.0), key=lambda each: abs(each - temperature))
    beside = np.abs(exact - logsumexp(others / known, axis=1))
    assert (np.abs(top.log_rest(temperature).double().numpy() - exact) < 0.25 * beside).all()
    torch.testing.assert_close(top.log_rest(known * (1 + 1e-9)), top.log_rest(known), rtol=0, atol=0)


@pytest.mark.parametrize(("k", "drawn"), [(4, 2), (5, 0), (6, 0)])
def test_nothing_is_drawn_where_every_class_is_kept(k: int, drawn: int) -> None:
    codec = TopKCodec(k, tail="sample", draws=2)
    assert codec.drawn(5) == drawn
    assert ("drawn" in codec.columns(5)) == bool(drawn)
    found = there_and_back(codec, rows(5, 3, 5))
    assert isinstance(found, TopK)
    assert (found.drawn is None) == (not drawn)
    if drawn:
        left = [set(range(5)) - set(ids) for ids in found.ids.tolist()]
        assert [set(each) for each in found.drawn.tolist()] == left
