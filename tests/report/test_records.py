import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoct.errors import DataError, IntegrityError
from decoct.report.records import as_results, read_results
from decoct.report.runs import distinct, read_runs


def test_unknown_keys_and_gaps_are_borne():
    results = as_results(
        {"models": [{"name": "a", "quality": {"x": math.nan, "y": None, "z": 1}, "future": 1, "file_bytes": math.inf}],
         "comparisons": None, "new": []}
    )  # fmt: skip
    assert results.models[0].quality == {"z": 1.0}
    assert results.models[0].file_bytes is None


def test_a_folder_without_results_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"holds no results\.json.*decoct run"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"models": [{}]}', '{"models": [{"name": "a", "quality": 3}]}'])
def test_damaged_results_are_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"results\.json"):
        read_results(tmp_path)


def test_the_recipe_falls_back_to_the_resolved_one(write, records):
    folder = write(records.digits(1))
    (folder / "recipe.yaml").unlink()
    assert "image_classification" in read_runs([folder])[0].recipe


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_names_of_runs_differ(paths):
    from pathlib import Path

    names = distinct([Path("/", *parts) for parts in paths])
    assert len(set(names)) == len(paths)
