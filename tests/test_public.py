"""The public surface, and what the catalogues say about themselves: list, explain, schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import decoct
from decoct.cli.doctor import REQUIRED
from decoct.cli.explain import PARTS, explain, listed
from decoct.cli.scaffold import shipped
from decoct.cli.schema import catalogues, recipe_schema
from decoct.errors import RecipeError
from decoct.recipe.file import as_python, read, read_file
from decoct.recipe.recipe import Recipe
from decoct.spec import Spec

ROOT = Path(__file__).parents[1]
ENTRIES = [(word, key) for word, catalogue in catalogues().items() for key in catalogue]


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert decoct.__all__ == sorted(decoct.__all__)
    for name in decoct.__all__:
        assert getattr(decoct, name) is not None
    for name in ("distill", "Distiller", "export", "benchmark", "Recipe", "KD", "CrossEntropy", "functional"):
        assert name in decoct.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = decoct.nothing


def test_importing_decoct_loads_nothing_heavy() -> None:
    code = "import sys, decoct; sys.exit(bool({'torch', 'pydantic', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_every_entry_is_summed_up_and_explained(word: str, key: str) -> None:
    summary = listed([word])[word][key]
    assert summary.endswith(".")
    assert len(summary) <= 120
    entry = next(each for each in explain(key) if each.catalogue == word)
    assert entry.summary == summary
    assert {each.name for each in entry.settings} == set(catalogues()[word].resolve(key).model_fields)
    assert_whole(entry.summary)
    for line in entry.about.splitlines():
        assert not line.rstrip().endswith(("…", "TODO")), line
    for setting in entry.settings:
        assert setting.type
        assert setting.required == (setting.default == "" and setting.required)
        assert_whole(setting.about)


def assert_whole(text: str) -> None:
    """A sentence that says something and ends: no blank, no bracket or quotation left open, none that is cut."""
    assert len(text.split()) >= 2, text
    assert text.endswith((".", "?")), text
    assert not re.search(r"(?:et al|e\.g|i\.e|cf|\.\.|…|,|:)\.?$", text), text
    assert text.count("`") % 2 == 0, text
    assert text[0] not in ",;:.)", text
    for one, other in ("()", "[]", "{}"):
        assert text.count(one) == text.count(other), text


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_recipe_are_explained_whole(name: str) -> None:
    [entry] = [each for each in explain(name) if each.catalogue == "recipes"]
    for setting in entry.settings:
        assert_whole(setting.about)


def test_explain_knows_default_range_and_paper() -> None:
    [entry] = explain("kd.temperature")
    assert [(each.name, each.default) for each in entry.settings] == [("temperature", "4.0")]
    assert "Hinton" in entry.papers[0]
    [budget] = explain("budget.epochs")
    assert budget.settings[0].range == "at least 0"
    assert [each.catalogue for each in explain("objectives.kd")] == ["objectives"]
    assert {each.catalogue for each in explain("onnx")} == {"models", "targets", "teachers"}


def test_explain_lists_what_a_setting_may_hold_and_marks_what_is_required() -> None:
    [scheme] = explain("prune.scheme")
    assert scheme.settings[0].choices == listed(["pruning"])["pruning"]
    [teachers] = explain("prune.teachers")
    assert set(teachers.settings[0].choices) == set(catalogues()["teachers"])
    assert explain("steps.prune.ratio")[0].settings[0].choices == {}
    assert "heads" in explain("steps.prune.ratio")[0].settings[0].about
    rows = [each.row() for entry in explain("recipe") for each in entry.settings if each.required]
    assert rows
    assert {each["default"] for each in rows} == {"(required)"}


@pytest.mark.parametrize(
    ("key", "words"),
    [("kdd", "did you mean kd"), ("temperature", "the setting temperature of"), ("qqqqqq", "see `decoct list`")],
)
def test_explain_suggests(key: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        explain(key)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", shipped())
def test_the_schema_takes_every_shipped_recipe(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read_file(shipped()[name]).data)
    validator.validate(Recipe.load(shipped()[name]).plain())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("temperature: 4.0", "temprature: 4.0"),
        ("use: distill", "use: distil"),
        ("width: 32", "width: wide"),
        ("budget: {epochs: ", "budget: {epochs: -"),
        ("seed: 0", "seed: 0\nsed: 1"),
    ],
)
def test_the_schema_refuses_what_a_recipe_refuses(
    old: str, new: str, validator: jsonschema.Draft202012Validator
) -> None:
    text = shipped()["digits"].read_text(encoding="utf-8")
    assert old in text
    damaged = read(text.replace(old, new, 1))
    assert not validator.is_valid(damaged.data)
    with pytest.raises(RecipeError):
        Recipe.from_marked(damaged)


def test_the_schema_follows_every_reference(validator: jsonschema.Draft202012Validator) -> None:
    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(each) for each in value.values()))
        return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()

    schema = validator.schema
    assert {each.removeprefix("#/$defs/") for each in references(schema)} <= set(schema["$defs"])


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_agree_in_yaml_python_and_repr(name: str) -> None:
    recipe = Recipe.load(shipped()[name])
    for defaults in (True, False):
        assert Recipe.from_marked(read(recipe.yaml(defaults=defaults))) == recipe
    names: dict = {}
    exec(as_python(recipe), names)
    assert names["recipe"] == recipe
    assert hash(names["recipe"]) == hash(recipe)


def test_shipped_recipes_say_what_they_are() -> None:
    assert {"digits", "fashion_mnist", "sst2", "credit_default", "california_housing"} <= set(shipped())


def test_doctor_asks_for_the_versions_of_the_package() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in project["dependencies"])
    assert {name: ".".join(map(str, least)) for name, least in REQUIRED.items()} == {
        name: bounds[name] for name in REQUIRED
    }


def test_versions_are_pinned_by_name_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 50
    assert all(line.count("==") == 1 and "/" not in line and " " not in line for line in pins)


def test_classes_in_catalogues_are_specs_with_their_keys() -> None:
    for word, key in ENTRIES:
        found = catalogues()[word].resolve(key)
        assert issubclass(found, Spec)
        assert found.use == key
