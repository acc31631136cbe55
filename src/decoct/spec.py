"""Spec, the frozen data that describes everything, and the catalogues it is chosen from.

The same Spec comes from Python (`KD(temperature=4)`), from YAML (`{use: kd, temperature: 4}`) and from the
command line (`objective.temperature=4`). A catalogue is a table `name -> "module:Class"`, resolved when a value
is validated, so that rooms meet only as field types.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from decoct.errors import Problem, RecipeError, did_you_mean, dotted

WHOLE_NUMBERS = (-(2**63), 2**63 - 1)
"""The least and the greatest whole number that a setting may be: those of 64 bits."""

PLUGINS: set[str] = set()
"""Packages outside decoct whose classes a recipe may name; filled by `--plugin` and by `allow_plugin`."""


def allow_plugin(package: str) -> None:
    """Let recipes name classes of `package` as `use: package.module:Class`; importing it runs its code."""
    PLUGINS.add(package)


_EXACT: dict[str, dict[str, Any]] = {
    "int": {"strict": True},
    "bool": {"strict": True},
    "float": {"strict": True, "allow_inf_nan": False},
}
_NO_SCHEMA = ("default", "metadata", "expected", "serialization", "keys_schema")  # keys of JSON are text


def _exact(schema: Any) -> Any:
    """A core schema in which nothing becomes a number or a boolean that is none, and `True` is not equal to 1."""
    if isinstance(schema, list | tuple):
        return type(schema)(_exact(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    inner = {name: each if name in _NO_SCHEMA else _exact(each) for name, each in schema.items()}
    kind = schema.get("type")
    if kind == "literal" and not all(isinstance(each, str) for each in schema["expected"]):
        return core_schema.no_info_before_validator_function(_same_type(schema["expected"]), inner)
    return {**inner, **_EXACT[kind]} if isinstance(kind, str) and kind in _EXACT else inner


def _same_type(expected: Sequence[Any]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        equal = [each for each in expected if isinstance(value, bool | int | float) and each == value]
        if equal and not any(type(each) is type(value) for each in equal):
            raise ValueError(f"{value!r} is not {equal[0]!r}; write {str(equal[0]).lower()}")
        return value

    return check


class _SpecMeta(ModelMetaclass):
    """Turns pydantic's report into a RecipeError and takes the positional arguments that a class declares."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        names: tuple[str, ...] = getattr(cls, "positional", ())
        if len(args) > len(names):
            allowed = f"at most {len(names)} ({', '.join(names)})" if names else "none"
            raise RecipeError(f"{cls.__name__}: {len(args)} positional arguments; allowed: {allowed}")
        for name, value in zip(names, args):
            if name in fields:
                raise RecipeError(f"{cls.__name__}: {name} given twice")
            fields[name] = value
        try:
            return super().__call__(**fields)
        except ValidationError as error:
            raise as_recipe_error(error, cls.__name__) from None


class Spec(BaseModel, metaclass=_SpecMeta):
    """Frozen data that describes a method, task, teacher, step or target.

    Unknown keys are refused with the nearest right name; two Specs with equal fields are equal, hash alike and
    have the same `digest`; `eval(repr(spec)) == spec`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings")

    use: ClassVar[str] = ""
    """The key in the catalogue; empty for a Spec that is never chosen from one."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that the constructor also takes by position."""
    not_in_key: ClassVar[tuple[str, ...]] = ()
    """Settings that say how the work is done and do not change the result, so that they are no part of a key."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_problems(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        if isinstance(data, Mapping) and cls.use and data.get("use") == cls.use:
            data = {key: value for key, value in data.items() if key != "use"}
        data, made, details = _plain_numbers(data), None, list[InitErrorDetails]()
        try:
            made = handler(data)
        except ValidationError as error:
            details = [cls._named(each) for each in _causes(error.errors(include_url=False))]
        named = [each["loc"] for each in details]
        details += [each for each in _too_large(data) if each["loc"] not in named]
        if made is None or details:
            raise ValidationError.from_exception_data(cls.__name__, details) from None
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Numbers are numbers and booleans booleans: `"7"` is no 7, `True` no 1, `7.0` no whole number, inf none."""
        found: core_schema.CoreSchema = _exact(handler(source))
        return found

    @classmethod
    def _named(cls, error: Any) -> InitErrorDetails:
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
            message = f"unknown; {did_you_mean(str(error['loc'][0]), cls.model_fields)}"
        elif error["type"] not in ("decoct", "value_error", "missing"):
            message = f"{message} (got {_short(error['input'])}){_remedy(error['type'], error['input'])}"
            message += _range_of(cls, error["loc"]) if error["type"].startswith(("less_than", "greater_than")) else ""
        if error["type"] == "missing":
            message = "missing; give it a value"
        return InitErrorDetails(type=PydanticCustomError("decoct", message), loc=error["loc"], input=error["input"])

    @model_serializer(mode="wrap")
    def _with_use(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = handler(self)
        return {"use": self.use, **fields} if self.use else fields

    @classmethod
    def parse(cls, data: Any) -> Self:
        """The Spec that plain data (from YAML, JSON, the command line) describes; RecipeError lists all problems."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise as_recipe_error(error, cls.__name__) from None

    def plain(self, *, defaults: bool = True) -> dict[str, Any]:
        """Plain data (str, int, float, bool, None, list, dict) from which `parse` makes this Spec again."""
        full: dict[str, Any] = json.loads(self.model_dump_json())
        return full if defaults else _without_defaults(self, full)

    def keyed(self) -> dict[str, Any]:
        """`plain` without the settings that do not change the result (`not_in_key`), at any depth."""
        found: dict[str, Any] = _keyed(self, self.plain())
        return found

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        return digest_of(self.plain())

    def replace(self, **fields: Any) -> Self:
        """The same Spec with other values, validated; what was left at its default stays so."""
        present = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return type(self)(**{**present, **fields})

    def __hash__(self) -> int:
        return int(self.digest()[:15], 16)

    def __repr__(self) -> str:
        parts = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                parts.append(f"{name}={(str(value) if isinstance(value, Path) else value)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    __str__ = __repr__


class Given(Spec):
    """An object that came from Python and cannot be written down: its name in the table, class and fingerprint."""

    use: ClassVar[str] = "given"
    name: str
    type: str
    fingerprint: str = ""


class Catalogue(Mapping[str, str]):
    """A table `name -> "module:Class"` of the Specs that one field may hold.

    >>> from decoct.objectives import CATALOGUE
    >>> CATALOGUE.resolve("kd").__name__
    'KD'
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self.noun = noun
        self._entries = dict(sorted(entries.items()))

    def __getitem__(self, key: str) -> str:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, key: str) -> type[Spec]:
        """The class under `key`, imported now; a key with a colon names a class of an allowed plugin."""
        if ":" in key:
            return _plugin_class(key)
        if key not in self._entries:
            raise ValueError(f"{key!r} is no {self.noun}; {did_you_mean(key, self._entries)}")
        found = _import_class(self._entries[key])
        assert found.use == key, f"{self._entries[key]} says use = {found.use!r}, the catalogue says {key!r}"
        return found

    def summary(self, key: str) -> str:
        """First line of the class's docstring, read from the source without importing it."""
        module, _, name = self._entries[key].partition(":")
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin is not None
        for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        raise AssertionError(f"{self._entries[key]} is not defined in {found.origin}")


class Choice:
    """Field metadata: the value is one Spec of a catalogue, `Annotated[Objective, Choice("decoct.objectives")]`.

    Takes a Spec, a mapping with `use`, or what `shorthand` (a function `"module:name"` of plain data to plain data)
    makes of other plain data.
    """

    def __init__(self, package: str, *, shorthand: str | None = None) -> None:
        self.package = package
        self.shorthand = shorthand

    @property
    def catalogue(self) -> Catalogue:
        found = importlib.import_module(self.package).CATALOGUE
        assert isinstance(found, Catalogue)
        return found

    def validate(self, value: Any) -> Any:
        if isinstance(value, Spec):
            return value
        if self.shorthand is not None and not (isinstance(value, Mapping) and "use" in value):
            value = _import_object(self.shorthand)(value)
            if isinstance(value, Spec):
                return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{_short(value)} is no {self.catalogue.noun}; write {{use: NAME, ...}}")
        if "use" not in value:
            raise ValueError(f"`use` is missing; {did_you_mean('', self.catalogue)}")
        fields = {key: each for key, each in value.items() if key != "use"}
        return self._chosen(value["use"]).model_validate(fields)

    def _chosen(self, use: Any) -> type[Spec]:
        """The class that `use` names; the error's path ends in `use`."""
        try:
            if isinstance(use, str):
                return self.catalogue.resolve(use)
            message = f"`use` is {_short(use)}; {did_you_mean('', self.catalogue)}"
        except ValueError as error:
            message = str(error)
        wrong = InitErrorDetails(type=PydanticCustomError("decoct", message), loc=("use",), input=use)
        raise ValidationError.from_exception_data(self.catalogue.noun, [wrong])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.plain()),
        )

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "required": ["use"], "properties": {"use": {"enum": list(self.catalogue)}}}


def digest_of(plain: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_recipe_error(error: ValidationError, title: str) -> RecipeError:
    """pydantic's report as one RecipeError; `problems` keeps the path to each setting."""
    problems = []
    for each in error.errors(include_url=False):
        loc = tuple(part for part in each["loc"] if not str(part).startswith("function-"))
        problems.append(Problem(loc, each["msg"].removeprefix("Value error, ")))
    lines = [f"{title}.{dotted(p.path)}: {p.message}" if p.path else f"{title}: {p.message}" for p in problems]
    return RecipeError("\n".join(lines), problems)


def _causes(errors: Sequence[Any]) -> list[Any]:
    """The errors without those that follow from others: a list is not too short because an item of it is wrong."""
    places = [each["loc"] for each in errors]
    return [
        each
        for each in errors
        if each["type"] != "too_short" or not any(at[:-1][: len(each["loc"])] == each["loc"] for at in places if at)
    ]


def _plain_numbers(value: Any) -> Any:
    """`value` with NumPy's numbers and booleans, at any depth of plain data, as those of Python."""
    if isinstance(value, Spec):
        return value
    if isinstance(value, dict):
        return {key: _plain_numbers(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain_numbers(each) for each in value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.number | numpy.bool_):
        return value.item()
    return value


def _too_large(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[InitErrorDetails]:
    """What is wrong with whole numbers, at any depth of plain data, that no machine word holds."""
    if isinstance(value, int) and not WHOLE_NUMBERS[0] <= value <= WHOLE_NUMBERS[1]:
        digits = len(f"{abs(value):x}") * 6 // 5  # of a number that str() may refuse to write
        message = f"a whole number of about {digits} digits; allowed: {WHOLE_NUMBERS[0]} to {WHOLE_NUMBERS[1]}"
        yield InitErrorDetails(type=PydanticCustomError("decoct", message), loc=path, input=None)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _too_large(each, (*path, str(key)))
    elif type(value) in (list, tuple):
        for index, each in enumerate(value):
            yield from _too_large(each, (*path, index))


def _range_of(cls: type[Spec], path: Sequence[str | int]) -> str:
    """What a number may be, where a setting has a least and a greatest one."""
    marks = cls.model_fields[str(path[0])].metadata if len(path) == 1 else []
    bounds = {
        name: getattr(each, name) for each in marks for name in ("ge", "le") if getattr(each, name, None) is not None
    }
    return f"; allowed: {bounds['ge']} to {bounds['le']}" if len(bounds) == 2 else ""


def _remedy(kind: str, given: Any) -> str:
    """What to write where a setting has the wrong type; empty where nobody knows."""
    if kind == "bool_type":
        return "; write true or false"
    if kind not in ("int_type", "float_type"):
        return ""
    if isinstance(given, float) and given.is_integer():
        return f"; write {int(given)}"
    if isinstance(given, bool):
        return "; true and false are no numbers"
    if isinstance(given, str):
        plain = given.replace("_", "")
        whole = plain.removeprefix("-").isdecimal() and plain.isascii()
        return f"; it is text, write {plain.strip()}" if whole else "; it is text"
    return ""


def _plugin_class(key: str) -> type[Spec]:
    package = key.partition(":")[0].partition(".")[0]
    if package not in PLUGINS:
        raise ValueError(f"{key!r} names a class outside decoct; allow it with --plugin {package}")
    return _import_class(key)


def _import_class(target: str) -> type[Spec]:
    found = _import_object(target)
    if not (isinstance(found, type) and issubclass(found, Spec)):
        raise ValueError(f"{target!r} is no Spec class")
    return found


def _import_object(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_defaults(spec: Spec, full: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {"use": spec.use} if spec.use else {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if field.is_required() or value != field.get_default(call_default_factory=True):
            kept[name] = _shorten(value, full[name])
    return kept


def _keyed(value: Any, full: Any) -> Any:
    if isinstance(value, Spec):
        kept = {name: each for name, each in full.items() if name not in value.not_in_key}
        inside = type(value).model_fields.keys() & kept.keys()
        return kept | {name: _keyed(getattr(value, name), kept[name]) for name in inside}
    if isinstance(value, Mapping):
        return {name: _keyed(each, part) for each, (name, part) in zip(value.values(), full.items())}
    if isinstance(value, tuple | list):
        return [_keyed(each, part) for each, part in zip(value, full)]
    return full


def _shorten(value: Any, full: Any) -> Any:
    if isinstance(value, Spec):
        return _without_defaults(value, full)
    if isinstance(value, Mapping):
        return {str(key): _shorten(each, full[str(key)]) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_shorten(each, part) for each, part in zip(value, full)]
    return full
