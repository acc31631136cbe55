"""A Spec's digest and a step's key are what they were: else every run is made anew, and every store is refused."""

from pathlib import Path

import pytest
from golden_digests import PLACES, all_digests_of, keys, recipes
from golden_numbers import bit_for_bit, recorded

SPECS = recorded("digests")
KEYS = recorded("keys")


@pytest.mark.parametrize("name", SPECS)
def test_digests_are_those_recorded(name: str) -> None:
    """A class, or a field that it needs, that is not there any more is a difference too."""
    assert all_digests_of(name) == SPECS[name]


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_recorded(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Statistics of real tables may be rounded otherwise elsewhere; then the data and the recipe are compared alone."""
    recipe = recipes()[name]
    real = recipe.data.use in PLACES
    found = keys(recipe, tmp_path, request.getfixturevalue("data_root") if real else None)
    if real and not bit_for_bit("keys"):
        assert {each: found[each] for each in ("digest", "data")} == {
            each: KEYS[name][each] for each in ("digest", "data")
        }
    else:
        assert found == KEYS[name]
