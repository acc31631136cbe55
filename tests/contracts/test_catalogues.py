"""What every entry of every catalogue keeps: its name, its description, and one form in Python, YAML and JSON."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import decoct
from decoct.cli.schema import catalogues, recipe_schema
from decoct.errors import RecipeError
from decoct.recipe import file as recipe_file
from decoct.spec import Catalogue, Choice, Spec

ROOT = Path(decoct.__file__).parent
ENTRIES = [(word, key) for word, catalogue in catalogues().items() for key in catalogue]
PACKAGES = {word: f"decoct.{room}" for word, room in zip(catalogues(), decoct.ROOMS)}
NEEDED: Mapping[str, Any] = {
    "layers": {"layer2": "layer3"},
    "student_layers": ("a", "b"),
    "teacher_layers": ("c", "d"),
    "terms": ({"use": "kd", "weight": 0.5}, {"use": "cross_entropy"}),
    "name": "name",
    "path": "some/path",
    "model": {"use": "mlp", "hidden": [4]},
    "estimator": {"use": "gradient_boosting"},
    "classes": ("0", "1"),
    "assistants": ({"use": "mlp", "hidden": [4]},),
    "target": "column",
    "type": "some.Class",
    "value": 0.5,
    "start": 0.5,
    "end": 0.25,
    "sets": {"digit": {"use": "digits"}},
    "reads": {"use": "images"},
    "heads": {"digit": {"use": "classes"}},
}
"""A value for fields, by name, that have no default."""
BY_TYPE: Mapping[Any, Any] = {str: "name", int: 1, float: 0.5, tuple[str, ...]: ("a", "b")}
"""And for the others."""

ALSO: Mapping[tuple[str, str], dict[str, Any]] = {
    ("models", "timm"): {"name": "name"},
    ("models", "transformers"): {"path": "some/path"},
    ("tokenizers", "pretrained"): {"path": "some/path"},
    ("models", "black_box"): {"url": "http://127.0.0.1:8700"},
    ("objectives", "layer_fusion"): {"layers": {"layer2": ("layer2", "layer3")}},
    ("steps", "choose_exit"): {"exit": "layer2"},
    ("steps", "rewrite"): {"scheme": {"use": "low_rank"}},
    ("steps", "share"): {"scheme": {"use": "codebook"}},
    ("steps", "search"): {
        "step": {"use": "train", "name": "tried"},
        "setting": "batch_size",
        "low": 1,
        "high": 8,
        "max_size_bytes": 9,
    },
}
"""Fields of entries that need one of several, or that mean something else there."""


def made(word: str, key: str, **fields: Any) -> Spec:
    """The entry with its defaults, and a value for what has none."""
    found = catalogues()[word].resolve(key)
    required = {name: field for name, field in found.model_fields.items() if field.is_required()}
    also = ALSO.get((word, key), {})
    plain = {name: field for name, field in required.items() if name not in also}
    needed = {name: NEEDED[name] if name in NEEDED else BY_TYPE[field.annotation] for name, field in plain.items()}
    needed |= also
    return found.parse({**needed, **fields})


def modules() -> list[str]:
    return [each.name for each in pkgutil.walk_packages([str(ROOT)], "decoct.")]


def test_no_catalogue_is_left_out_of_the_list() -> None:
    """Every CATALOGUE in the source belongs to a room that `list`, `explain` and `schema` read."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(each, ast.Name) and each.id == "CATALOGUE" for each in targets):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert found == set(decoct.ROOMS)


def test_no_two_classes_share_a_name() -> None:
    targets = [target for catalogue in catalogues().values() for target in catalogue.values()]
    names = Counter(target.partition(":")[2] for target in set(targets))
    names.update(set(decoct._SURFACE) - {"Data", "Model", "Step"})
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_every_spec_that_a_field_may_hold_stands_in_decoct() -> None:
    """So that `eval(repr(recipe))` needs `from decoct import *` alone."""
    inside: set[type[Spec]] = set()
    for word, key in ENTRIES:
        inside |= specs_in(catalogues()[word].resolve(key))
    concrete = {each for each in inside if not inspect.isabstract(each)}
    absent = sorted(each.__name__ for each in concrete if each.__name__ not in decoct.__all__)
    assert absent == []
    assert all(getattr(decoct, each.__name__) is each for each in concrete)


def specs_in(found: type[Spec]) -> set[type[Spec]]:
    """The classes of Spec in the types of a class's fields."""
    classes: set[type[Spec]] = set()
    waiting: list[Any] = [field.annotation for field in found.model_fields.values()]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and issubclass(each, Spec):
            classes.add(each)
        waiting += getattr(each, "__args__", ())
    return classes


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_an_entry_says_what_it_is(word: str, key: str) -> None:
    found = catalogues()[word].resolve(key)
    assert found.use == key
    assert key == key.lower()
    summary = catalogues()[word].summary(key)
    assert summary.endswith(".")
    assert 10 < len(summary) <= 120
    assert (inspect.getdoc(found) or "").startswith(summary)
    assert found.__doc__ != (inspect.getmro(found)[1].__doc__)


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_an_entry_comes_back_from_every_form(word: str, key: str) -> None:
    spec = made(word, key)
    choice = Choice(PACKAGES[word])
    for defaults in (True, False):
        plain = spec.plain(defaults=defaults)
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["use"] == key
        text = recipe_file.dump(plain)
        for each in (plain, recipe_file.read(text).data):
            again = choice.validate(each)
            assert again == spec
            assert type(again) is type(spec)
            assert hash(again) == hash(spec)
            assert again.digest() == spec.digest()
    names = {name: getattr(decoct, name) for name in decoct.__all__}
    paths = {"PosixPath": Path}
    assert eval(repr(spec), {**names, **paths}) == spec
    python = recipe_file.as_python(spec)
    exec(python, known := {})
    assert spec in [each for each in known.values() if isinstance(each, Spec)]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_the_schema_of_an_entry_takes_what_the_entry_takes(word: str, key: str, schema: dict[str, Any]) -> None:
    one = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{word}.{key}", "$defs": schema["$defs"]})
    spec = made(word, key)
    for defaults in (True, False):
        one.validate(spec.plain(defaults=defaults))
    assert not one.is_valid({**spec.plain(), "no_such_key": 1})
    assert not one.is_valid({**spec.plain(), "use": "other"})
    assert not one.is_valid(spec.plain().pop("use"))


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_an_entry_is_frozen_and_refuses_what_it_does_not_know(word: str, key: str) -> None:
    spec = made(word, key)
    for name in type(spec).model_fields:
        with pytest.raises(ValueError):
            setattr(spec, name, None)
    with pytest.raises(RecipeError, match="no_such_key: unknown"):
        made(word, key, no_such_key=1)
    for name in type(spec).model_fields:
        if len(name) > 4:
            with pytest.raises(RecipeError, match=f"did you mean .*{name}"):
                made(word, key, **{name[:-1] + name[-1] * 2: 1})


@pytest.mark.parametrize(("word", "key"), ENTRIES)
def test_what_an_entry_lacks_is_named(word: str, key: str) -> None:
    found = catalogues()[word].resolve(key)
    for name, field in found.model_fields.items():
        if field.is_required():
            plain = {each: value for each, value in made(word, key).plain().items() if each != name}
            with pytest.raises(RecipeError, match=rf"{name}: missing"):
                found.parse(plain)


@pytest.mark.parametrize("word", list(catalogues()))
def test_a_wrong_key_is_answered_with_the_nearest(word: str) -> None:
    catalogue = catalogues()[word]
    for key in catalogue:
        with pytest.raises(ValueError, match=rf"is no {catalogue.noun}; .*\b{key}\b"):
            catalogue.resolve(key + "x")


@given(st.text())
def test_no_text_resolves_to_anything_else(text: str) -> None:
    for catalogue in catalogues().values():
        if text not in catalogue:
            with pytest.raises(ValueError):
                catalogue.resolve(text)


def test_a_catalogue_is_sorted_and_points_at_what_is_there() -> None:
    for room in decoct.ROOMS:
        catalogue = importlib.import_module(f"decoct.{room}").CATALOGUE
        assert isinstance(catalogue, Catalogue)
        assert list(catalogue) == sorted(catalogue)
        for key, target in catalogue.items():
            module, _, name = target.partition(":")
            assert module.startswith("decoct.")
            assert importlib.import_module(module).__dict__[name] is catalogue.resolve(key)


def test_every_module_can_be_imported() -> None:
    for name in modules():
        if name != "decoct.__main__":
            importlib.import_module(name)


def test_a_rule_between_fields_speaks_plainly() -> None:
    with pytest.raises(RecipeError, match=r"^SGD: nesterov is true and momentum 0"):
        decoct.SGD(nesterov=True, momentum=0.0)
