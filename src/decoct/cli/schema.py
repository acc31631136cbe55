"""The JSON schema of recipes, for editors, made from the same Specs that validate them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import decoct
from decoct.spec import Catalogue, Spec

Json = dict[str, Any]

TEXT_FOR = {"models": "timm/resnet34, torchvision/resnet18, mlp", "objectives": "the name alone, with its defaults"}
"""Rooms whose entries may also be written as text."""


def catalogues() -> dict[str, Catalogue]:
    """Every catalogue under its plural: "tasks", "objectives", "steps", ..."""
    words = {
        "data": "data",
        "objectives.balance": "balances",
        "objectives.refine": "refinements",
        "tasks.mixing": "mixings",
        "teachers.combinations": "combinations",
        "training": "schedules",
        "training.optimizers": "optimizers",
    }
    return {
        words.get(room, room.rpartition(".")[2]): importlib.import_module(f"decoct.{room}").CATALOGUE
        for room in decoct.ROOMS
    }


def recipe_schema() -> Json:
    """The schema (draft 2020-12) of a recipe file; each choice is a union told apart by `use`."""
    from decoct.recipe.recipe import Recipe

    definitions: Json = {}
    root = class_schema(Recipe, definitions)
    for word, catalogue in catalogues().items():
        definitions[word] = _union(word, catalogue)
        for key in catalogue:
            entry = class_schema(catalogue.resolve(key), definitions)
            entry["properties"] = {"use": {"const": key}, **entry.get("properties", {})}
            entry["required"] = ["use", *entry.get("required", [])]
            definitions[f"{word}.{key}"] = entry
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "decoct recipe"}
    return {**head, **{name: each for name, each in root.items() if name != "title"}, "$defs": definitions}


def class_schema(found: type[Spec], definitions: Json | None = None) -> Json:
    """The schema of one Spec; plain Specs inside it go to `definitions`, choices become references."""
    schema = found.model_json_schema(ref_template="#/$defs/{model}")
    inner = schema.pop("$defs", {})
    words = {tuple(catalogue): word for word, catalogue in catalogues().items()}
    if definitions is not None:
        definitions.update({name: _linked(each, words) for name, each in inner.items()})
    linked = _linked(schema, words)
    assert isinstance(linked, dict)
    return linked


def fields(found: type[Spec]) -> Iterator[tuple[str, Json, Any]]:
    """Name, schema and pydantic's description of each field of a Spec."""
    properties = class_schema(found).get("properties", {})
    for name, info in found.model_fields.items():
        yield name, properties.get(name, {}), info


def _union(word: str, catalogue: Catalogue) -> Json:
    plugin = {
        "type": "object",
        "required": ["use"],
        "properties": {"use": {"type": "string", "pattern": ":"}},
        "description": "a class from outside, `package.module:Class`, read under --plugin package",
    }
    choices: list[Json] = [{"$ref": f"#/$defs/{word}.{key}"} for key in catalogue]
    union: Json = {"oneOf": [*choices, plugin], "discriminator": {"propertyName": "use"}}
    if word in TEXT_FOR:
        union["oneOf"].append({"type": "string", "description": TEXT_FOR[word]})
    if word == "objectives":
        union["oneOf"].append({"type": "array", "items": {"$ref": "#/$defs/objectives"}})
    return union


def _linked(value: Any, words: Mapping[tuple[str, ...], str]) -> Any:
    """`value` with each choice, as Choice writes it, replaced by a reference to the union of its catalogue."""
    if isinstance(value, list):
        return [_linked(each, words) for each in value]
    if not isinstance(value, Mapping):
        return value
    use = value.get("properties", {}).get("use", {}) if isinstance(value.get("properties"), Mapping) else {}
    keys = tuple(use.get("enum", ())) if isinstance(use, Mapping) else ()
    if keys in words and set(value["properties"]) == {"use"}:
        rest = {name: each for name, each in value.items() if name not in ("type", "required", "properties")}
        return {**rest, "$ref": f"#/$defs/{words[keys]}"}
    if value.get("type") == "object" and value.get("required") == ["use"] and "properties" not in value:
        return {"$ref": "#/$defs/schedules"}
    return {name: _linked(each, words) for name, each in value.items()}
