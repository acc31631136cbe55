"""k-means of numbers against scikit-learn from the same start."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from decoct.sharing._kmeans import kmeans, nearest


def inertia(values, centroids):
    return float(((values[:, None] - centroids) ** 2).min(1).sum())


@pytest.mark.parametrize("clusters", [2, 16, 100])
@pytest.mark.parametrize("init", ["linear", "quantile"])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_inertia_is_no_more_than_that_of_scikit_learn(clusters, init, kind):
    drawn = np.random.default_rng(clusters)
    values = drawn.normal(size=3000) if kind == "normal" else drawn.standard_t(3, size=3000)
    if init == "linear":
        start = np.linspace(values.min(), values.max(), clusters)
    else:
        start = np.quantile(values, (np.arange(clusters) + 0.5) / clusters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = KMeans(clusters, init=start[:, None], n_init=1, tol=0, max_iter=300).fit(values[:, None])
    ours = kmeans(values, clusters, init)
    assert len(ours) == clusters
    assert inertia(values, ours) <= theirs.inertia_ * 1.001


@settings(max_examples=80, deadline=None)
@example([0, -1, 7, -8, 9, 13, 16], 6)  # 2.25 lies half-way between two centroids
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=40), st.integers(1, 8))
def test_it_ends_where_each_centroid_is_the_mean_of_its_members(numbers, clusters):
    values = np.array(numbers, dtype=float) / 4
    centroids = kmeans(values, clusters)
    assert (np.diff(centroids) > 0).all()
    assert len(centroids) == min(clusters, len(np.unique(values)))
    codes = nearest(values, centroids)
    best = np.abs(values[:, None] - centroids).min(1)
    np.testing.assert_allclose(np.abs(values - centroids[codes]), best, atol=1e-12)
    if len(np.unique(values)) <= clusters:
        assert inertia(values, centroids) == 0
    else:
        for k in range(len(centroids)):
            members = values[codes == k]
            np.testing.assert_allclose(members.mean(), centroids[k], atol=1e-9)


def test_of_two_centroids_equally_near_the_higher_is_taken():
    assert nearest(np.array([-9.0, 0.5, 1.0, 1.5, 9.0]), np.array([0.0, 1.0, 2.0])).tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("clusters", [3, 5, 8])
def test_clusters_that_start_without_members_are_filled(clusters):
    """Evenly over the range all but the outermost are empty: seven groups, and one value far away."""
    values = np.r_[np.repeat(np.arange(7.0), 4), 1e6]
    found = kmeans(values, clusters)
    assert len(found) == clusters
    codes = nearest(values, found)
    assert np.bincount(codes, minlength=clusters).min() > 0
    np.testing.assert_allclose(found, [values[codes == k].mean() for k in range(clusters)], rtol=1e-9)
    if clusters == 8:
        np.testing.assert_allclose(found, np.unique(values), atol=1e-9)
