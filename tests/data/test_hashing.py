"""Keys and keyed randomness against plain Python."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.data.base import Split
from decoct.data.hashing import fingerprint, image_keys, keyed, occurrences, splitmix64, text_keys, uniform

MASK = (1 << 64) - 1
WORDS = st.integers(0, MASK)


def oracle_splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_splitmix_is_the_generator(states: list[int]) -> None:
    assert splitmix64(np.array(states, np.uint64)).tolist() == [oracle_splitmix(state) for state in states]


@given(st.integers(-(2**70), 2**70), st.lists(WORDS, min_size=1, max_size=4))
def test_keyed_chains_its_parts(seed: int, keys: list[int]) -> None:
    name = int.from_bytes(hashlib.sha256(b"order").digest()[:8], "little")

    def one(key: int) -> int:
        state = 0
        for part in (seed & MASK, name, key):
            state = oracle_splitmix(state ^ part)
        return state

    assert keyed(seed, "order", np.array(keys, np.uint64)).tolist() == [one(key) for key in keys]


def test_uniform_covers_the_unit_interval() -> None:
    values = uniform(keyed(3, np.arange(20_000)))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01


def test_image_keys_are_sha256_of_shape_and_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 2), dtype=np.uint8)
    expected = [int.from_bytes(hashlib.sha256(b"3x4x2" + i.tobytes()).digest()[:8], "little") for i in images]
    assert image_keys(images).tolist() == expected
    assert image_keys(images[::-1]).tolist() == expected[::-1]


def test_text_keys_are_sha256_of_utf8() -> None:
    texts = ["", "a b", "naïve 文"]
    expected = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "little") for t in texts]
    assert text_keys(texts).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=20))
def test_occurrences_count_equal_keys_by_target(rows: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in rows], np.uint64)
    labels = np.array([label for _, label in rows], np.int64)
    seen: dict[int, int] = {}
    expected = [0] * len(rows)
    for at in sorted(range(len(rows)), key=lambda i: (rows[i][1], i)):
        expected[at] = seen.get(rows[at][0], 0)
        seen[rows[at][0]] = expected[at] + 1
    assert occurrences(keys, {"label": labels}).tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda c, k, m: (c | {"label": c["label"] + 1}, k, m),
        lambda c, k, m: (c | {"text": ["ab", "c"]}, k, m),
        lambda c, k, m: (c | {"features": c["features"] + 1}, k, m),
        lambda c, k, m: (c, k + np.uint64(1), m),
        lambda c, k, m: (c, k, np.array([True, False])),
    ],
)
def test_fingerprint_covers_everything(change) -> None:
    columns = {"label": np.array([0, 1]), "text": ["a", "bc"], "features": np.zeros((2, 3))}
    keys = np.array([1, 2], np.uint64)
    whole = fingerprint({"train": Split(columns, keys)}, ("x", "y"), ())
    assert whole == fingerprint({"train": Split(dict(columns), keys.copy())}, ("x", "y"), ())
    other = Split(*change(dict(columns), keys, None))
    assert whole != fingerprint({"train": other}, ("x", "y"), ())
    assert whole != fingerprint({"test": Split(columns, keys)}, ("x", "y"), ())
    assert whole != fingerprint({"train": Split(columns, keys)}, ("x", "z"), ())
