"""Observers against brute force on the raw values."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from decoct.quantization.observers import (
    Histogram,
    affine,
    best_cut,
    divergence,
    entropy_range,
    mse_range,
    observe,
    percentile_range,
    weight_scales,
)

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(40_000)
RECTIFIED = np.maximum(NORMAL, 0)
HEAVY = RNG.standard_t(3, 40_000)
SHIFTED = RNG.gamma(2.0, 1.0, 40_000) - 0.5


def seen(values: np.ndarray, parts: int = 7) -> Histogram:
    found = Histogram()
    for part in np.array_split(values, parts):
        found.update(part)
    return found


finite = arrays(
    np.float64,
    st.integers(1, 60),
    elements=st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: 0.0 if abs(v) < 1e-6 else v),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(finite, min_size=1, max_size=5))
def test_histogram_of_batches_is_that_of_all_at_the_same_edges(batches: list[np.ndarray]) -> None:
    found = Histogram(bins=64)
    for batch in batches:
        found.update(batch)
    every = np.concatenate(batches)
    assert (found.low, found.high) == (every.min(), every.max())
    assert found.counts.sum() == len(every)
    assert len(found.counts) <= 64
    if found.width:
        edges = (found.first + np.arange(len(found.counts) + 1)) * found.width
        inside = [np.sum((every >= low) & (every < high)) for low, high in pairwise(edges)]
        np.testing.assert_array_equal(found.counts, inside)
        sums = [every[(every >= low) & (every < high)].sum() for low, high in pairwise(edges)]
        np.testing.assert_allclose(found.sums, sums, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("values", [NORMAL, RECTIFIED, HEAVY, SHIFTED])
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_the_quantile_of_the_values(values: np.ndarray, percentile: float) -> None:
    found = seen(values)
    low, high = percentile_range(found, percentile)
    outside = 1 - percentile / 100
    if values.min() >= 0:
        assert low == values.min()
    else:
        outside /= 2
        below, above = np.quantile(values, outside, method="lower"), np.quantile(values, outside, method="higher")
        assert below - 2 * found.width <= low <= above + 2 * found.width
    lower, upper = (np.quantile(values, 1 - outside, method=each) for each in ("lower", "higher"))
    assert lower - 2 * found.width <= high <= upper + 2 * found.width


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float((((codes - zero) * scale - values) ** 2).mean())


@pytest.mark.parametrize("values", [NORMAL, RECTIFIED, HEAVY, SHIFTED])
def test_mse_is_near_the_best_of_a_brute_search_on_raw_values(values: np.ndarray) -> None:
    raw = values[:8000]
    low, high = mse_range(seen(raw))
    shares = np.linspace(0.05, 1, 60)
    lows = [0.0] if raw.min() >= 0 else raw.min() * shares
    brute = min(squared_error(raw, a, b) for a in lows for b in raw.max() * shares)
    assert squared_error(raw, low, high) <= 1.05 * brute
    assert squared_error(raw, low, high) <= squared_error(raw, min(raw.min(), 0), raw.max())
    assert raw.min() <= low <= 0 or raw.min() > 0


def kl_by_loops(counts: np.ndarray, threshold: int, levels: int) -> float:
    """The published algorithm, word for word."""
    reference = list(counts[:threshold].astype(float))
    outliers = counts[threshold:].sum()
    quantized = [0.0] * threshold
    groups: dict[int, list[int]] = {}
    for i in range(threshold):
        groups.setdefault(i * levels // threshold, []).append(i)
    for members in groups.values():
        total = sum(counts[i] for i in members)
        some = [i for i in members if counts[i] > 0]
        for i in some:
            quantized[i] = total / len(some)
    reference[-1] += outliers
    p, q = np.array(reference) / sum(reference), np.array(quantized) / max(sum(quantized), 1e-300)
    if any(p[i] > 0 and q[i] == 0 for i in range(threshold)):
        return float("inf")
    return float(sum(p[i] * np.log(p[i] / q[i]) for i in range(threshold) if p[i] > 0))


@pytest.mark.parametrize("threshold", [128, 300, 777, 1000])
def test_divergence_is_that_of_the_published_algorithm(threshold: int) -> None:
    counts, _ = np.histogram(np.abs(HEAVY), bins=1000)
    assert divergence(counts.astype(float), threshold, 128) == pytest.approx(kl_by_loops(counts, threshold, 128))


def test_entropy_cuts_long_tails_and_keeps_short_ones() -> None:
    low, high = entropy_range(seen(HEAVY))
    assert high < 0.6 * np.abs(HEAVY).max()
    low, high = entropy_range(seen(HEAVY), symmetric=True)
    assert low == pytest.approx(-high)
    assert high > np.quantile(np.abs(HEAVY), 0.98)
    uniform = RNG.uniform(0, 1, 40_000)
    assert entropy_range(seen(uniform))[1] > 0.95
    found = seen(RECTIFIED)
    assert found.low == 0.0 == entropy_range(found)[0]


def test_entropy_is_not_led_by_the_zeros_of_a_rectifier() -> None:
    """Zeros are a code exactly: with many of them the range is that of the other values."""
    found, other = entropy_range(seen(RECTIFIED))[1], entropy_range(seen(NORMAL[NORMAL > 0]))[1]
    assert found == pytest.approx(other, rel=0.1)
    rounded = observe("entropy", seen(RECTIFIED)).round(RECTIFIED)
    assert 10 * np.log10((RECTIFIED**2).sum() / ((rounded - RECTIFIED) ** 2).sum()) > 40


PIXELS = np.where(RNG.random(40_000) < 0.5, 0, np.clip(RNG.normal(140, 70, 40_000), 0, 255).astype(int)) / 255
TAILS = {
    "relu of Laplace": np.maximum(RNG.laplace(size=200_000), 0),
    "exponential": RNG.exponential(1.0, 200_000),
    "both signs": RNG.laplace(size=200_000),
    "few values": RNG.exponential(1.0, 2_560),
    "few with both signs": RNG.gamma(2.0, 1.0, 2_560) - 0.5,
    "normalised pixels": (PIXELS - 0.286) / 0.353,
}


@pytest.mark.parametrize("name", TAILS)
def test_entropy_cuts_exponential_tails_mildly(name: str) -> None:
    """Published: one threshold on magnitudes, all counts taken as they are; white and logits were lost by it."""
    values = TAILS[name]

    def noise(low: float, high: float) -> float:
        return squared_error(values, min(low, 0.0), high)

    found = seen(values)
    low, high = entropy_range(found)
    assert ((values < low) | (values > high)).mean() <= 0.0005
    brute = min(noise(found.low * a, found.high * b) for a in np.linspace(0.5, 1, 15) for b in np.linspace(0.5, 1, 30))
    assert noise(low, high) <= 10**0.15 * brute


@pytest.mark.parametrize("name", ["relu of Laplace", "both signs"])
def test_entropy_is_the_least_of_all_thresholds(name: str) -> None:
    """Every threshold tried by the published loops, less what even counts diverge by chance."""
    values = np.abs(TAILS[name][:20_000])
    counts = np.histogram(values[values > 0], bins=500)[0].astype(float)
    chance = []
    for kept in range(128, 501):
        groups = [{i * 128 // kept for i in range(kept) if counts[i]}, [i for i in range(kept) if counts[i]]]
        chance.append((len(groups[1]) - len(groups[0])) / (2 * counts.sum()))
    losses = {
        kept: kl_by_loops(counts, kept, 128) - chance[kept - 128]
        for kept in range(128, 501)
        if counts[kept:].sum() <= 0.001 * counts.sum()
    }
    kept = best_cut(counts, 128)
    assert losses[kept] == pytest.approx(min(losses.values()), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.booleans())
def test_zero_is_a_code_exactly_and_the_range_is_held(low: float, width: float, symmetric: bool) -> None:
    code = affine(low, low + width, symmetric=symmetric)
    assert code.round(np.zeros(1))[0] == 0.0
    if max(abs(low), abs(low + width)) > 1e-6:
        ends = np.array([low, low + width])
        assert np.abs(code.round(ends) - ends).max() <= 0.51 * code.scale
    if symmetric and low < 0 and code.scale != 1.0:
        assert code.zero_point == 128


def test_rectified_values_have_zero_point_zero() -> None:
    for name in ("min_max", "percentile", "entropy", "mse"):
        assert observe(name, seen(RECTIFIED)).zero_point == 0
        assert observe(name, seen(RECTIFIED), symmetric=True).zero_point == 0


def test_a_tensor_of_zeros_is_taken() -> None:
    for name in ("min_max", "percentile", "entropy", "mse"):
        assert observe(name, seen(np.zeros(100))).scale == 1.0


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        seen(np.array([1.0, np.nan]), 1)


def test_weight_scales_by_channel_and_search() -> None:
    weight = RNG.standard_t(4, (6, 5, 3, 3))
    np.testing.assert_allclose(weight_scales(weight, 0), np.abs(weight).max(axis=(1, 2, 3)) / 127)
    assert weight_scales(weight, None) == pytest.approx([np.abs(weight).max() / 127])

    def error(channel: np.ndarray, scale: float) -> float:
        return float(((np.clip(np.rint(channel / scale), -127, 127) * scale - channel) ** 2).sum())

    found = weight_scales(weight, 0, "mse")
    for channel, scale in zip(weight, found):
        full = np.abs(channel).max() / 127
        brute = min(error(channel, full * share) for share in np.linspace(0.5, 1, 51))
        assert error(channel, scale) <= 1.02 * brute
    assert weight_scales(np.zeros((2, 3)), 0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("tail", "cut"), [(128, True), (129, False), (192, False)])
def test_a_thousandth_may_be_cut_off_at_one_end_and_no_more(tail: int, cut: bool) -> None:
    """128 unlike bins, which 128 steps hold exactly, and a tail of single values that is best cut off."""
    counts = np.r_[np.tile([2000.0, 2.0], 64), np.ones(tail)]
    kept = best_cut(counts, 128)
    assert counts[kept:].sum() <= 0.001 * counts.sum()
    assert (kept == 128) == cut
    assert divergence(counts, 128, 128) < min(divergence(counts, each, 128) for each in range(129, len(counts)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_that_end_at_zero_are_cut_at_the_other_end_alone(sign: float) -> None:
    """Of 0, 1, ..., 1000 a tenth lies above 900, whether a zero is among them or not."""
    for values in (np.arange(1001.0), np.arange(1.0, 1001.0)):
        low, high = sorted(sign * np.array(percentile_range(seen(sign * values), 90.0)))
        assert low == values.min()
        assert high == pytest.approx(np.quantile(values, 0.9), abs=1.0)


def test_a_range_below_what_float32_can_divide_by_has_scale_one() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    for width in (0.0, 1e-300, 0.999 * 255 * tiny):
        assert affine(0.0, width) == affine(0.0, 0.0)
    assert affine(0.0, 1.001 * 255 * tiny).scale == pytest.approx(1.001 * tiny, rel=1e-6)
