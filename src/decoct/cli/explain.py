"""What there is: the catalogues listed, and one entry or one setting of it explained."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic_core import PydanticUndefined

from decoct.cli.schema import catalogues, fields
from decoct.errors import RecipeError, did_you_mean, nearest
from decoct.spec import Catalogue, Spec


@dataclass(frozen=True)
class Setting:
    """One field: `type` and `range` in words, `default` as it is written in a recipe."""

    name: str
    type: str
    default: str
    required: bool
    range: str
    about: str
    choices: Mapping[str, str] = field(default_factory=dict)
    """By key the one line of each entry that the setting may hold, where it is chosen from a catalogue."""

    def row(self) -> dict[str, str]:
        """A row of a table; in place of a default, that the setting is required."""
        default = "(required)" if self.required else self.default
        return {"name": self.name, "type": self.type, "default": default, "range": self.range, "about": self.about}

    def lines(self) -> list[str]:
        """For people: name, type, default and range, then what it is."""
        default = "required" if self.required else f"default {self.default}"
        return [f"{self.name}: {'; '.join(filter(None, (self.type, default, self.range)))}", self.about]


@dataclass(frozen=True)
class Entry:
    """One entry of a catalogue, explained."""

    key: str
    catalogue: str
    target: str
    summary: str
    about: str
    settings: tuple[Setting, ...] = ()
    papers: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def listed(words: list[str] | None = None) -> dict[str, dict[str, str]]:
    """By catalogue, every key and its one line, read from the source without importing the class; "recipes" is empty.

    >>> listed(["schedules"])["schedules"]["constant"]
    'The same value throughout.'
    """
    known = {**catalogues(), "recipes": Catalogue("recipe", {})}
    for word in words or []:
        if word not in known:
            raise RecipeError(f"no catalogue {word!r}; {did_you_mean(word, known)}")
    return {word: {key: known[word].summary(key) for key in known[word]} for word in words or known}


PARTS = {
    "recipe": "decoct.recipe.recipe:Recipe",
    "budget": "decoct.training.budget:Budget",
    "stop": "decoct.training.stopping:Stop",
    "limits": "decoct.steps.limits:Limits",
}
"""Parts of a recipe that are chosen from no catalogue."""


def explain(key: str) -> list[Entry]:
    """The entries called `key`, in any catalogue; with a dot, one setting of them: `kd.temperature`.

    RecipeError names the nearest keys and settings.
    """
    known = catalogues()
    name, _, setting = key.partition(".")
    if name in known and setting.partition(".")[0] in known[name]:
        known = {name: known[name]}
        name, _, setting = setting.partition(".")
    found = [_entry(word, name, known[word].resolve(name)) for word in known if name in known[word]]
    if name in PARTS:
        found.append(_entry("recipes", name, _part(name)))
    if not found:
        raise RecipeError(f"nothing is called {name!r}; {_hint(name, known)}")
    if not setting:
        return found
    narrowed = [_narrowed(each, setting) for each in found]
    kept = [each for each in narrowed if each is not None]
    if not kept:
        settings = {each.name for entry in found for each in entry.settings}
        raise RecipeError(f"{name} has no setting {setting!r}; {did_you_mean(setting, settings)}")
    return kept


def _part(name: str) -> type[Spec]:
    module, _, attribute = PARTS[name].partition(":")
    found: type[Spec] = getattr(importlib.import_module(module), attribute)
    return found


def _hint(name: str, known: Mapping[str, Catalogue]) -> str:
    keys = {each for catalogue in known.values() for each in catalogue} | set(PARTS)
    owners: dict[str, list[str]] = {}
    for word in known:
        for key in known[word]:
            for setting in known[word].resolve(key).model_fields:
                owners.setdefault(setting, []).append(f"{key}.{setting}")
    close = nearest(name, {*keys, *owners})
    if not close:
        return "see `decoct list`"
    if close[0] in keys:
        return f"did you mean {' or '.join(each for each in close if each in keys)}?"
    return f"did you mean the setting {close[0]} of {', '.join(owners[close[0]][:4])}?"


def _narrowed(entry: Entry, setting: str) -> Entry | None:
    kept = tuple(each for each in entry.settings if each.name == setting)
    return Entry(**{**vars(entry), "settings": kept}) if kept else None


def _entry(word: str, key: str, found: type[Spec]) -> Entry:
    about = inspect.getdoc(found) or ""
    return Entry(
        key=key,
        catalogue=word,
        target=f"{found.__module__}:{found.__name__}",
        summary=about.partition("\n")[0],
        about=about.partition("\n")[2].strip(),
        settings=tuple(_settings(found)),
        papers=tuple(_papers(found)),
    )


def _settings(found: type[Spec]) -> Iterator[Setting]:
    for name, schema, info in fields(found):
        default = info.get_default(call_default_factory=True)
        yield Setting(
            name=name,
            type=_type(schema),
            default="" if default is PydanticUndefined else _written(default),
            required=info.is_required(),
            range=_range(schema),
            about=_about(found, name),
            choices=_choices(schema),
        )


def _choices(schema: Mapping[str, Any]) -> dict[str, str]:
    """What a field may hold, where its schema, or that of its items, is a catalogue."""
    known = catalogues()
    word = str(schema.get("$ref", "")).rpartition("/")[2]
    if word in known:
        return {key: known[word].summary(key) for key in known[word]}
    inner = [*(schema.get(kind) or [] for kind in ("anyOf", "oneOf", "allOf", "prefixItems"))]
    parts = [part for each in inner for part in each] + [schema.get("items"), schema.get("additionalProperties")]
    found: dict[str, str] = {}
    for part in parts:
        found |= _choices(part) if isinstance(part, Mapping) else {}
    return found


def _written(value: Any) -> str:
    from decoct.recipe.file import dump

    plain = value.plain(defaults=False) if isinstance(value, Spec) else value
    if plain is None or isinstance(plain, str | int | float | bool | list | tuple | dict):
        return dump({"value": plain}).removeprefix("value:").strip()
    return str(value)


_NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words.

    >>> _type({"anyOf": [{"type": "integer"}, {"type": "null"}]}), _type({"enum": ["best", "last"]})
    ('whole number or null', 'best or last')
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"one of {name}" if name in catalogues() else name.lower()
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        return " or ".join(dict.fromkeys(_type(each) for each in choices))
    if schema.get("type") == "array":
        items: Mapping[str, Any] = schema.get("items") or next(iter(schema.get("prefixItems", [])), {})
        return f"list of {_type(items)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"names to {_type(values)}" if isinstance(values, Mapping) else "mapping"
    return _NAMES.get(schema.get("type", ""), "anything")


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "length at least",
    "maxLength": "length at most",
    "minItems": "items at least",
    "maxItems": "items at most",
    "pattern": "like",
}


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a JSON schema in words.

    >>> _range({"type": "number", "minimum": 0, "exclusiveMaximum": 1})
    'at least 0, less than 1'
    """
    own = [f"{words} {schema[name]:g}" if isinstance(schema[name], float) else f"{words} {schema[name]}"
           for name, words in _BOUNDS.items() if name in schema]  # fmt: skip
    inner = [_range(each) for each in schema.get("anyOf", [])]
    return ", ".join([*own, *(each for each in inner if each)])


def _about(found: type[Spec], name: str) -> str:
    """What the docstrings of the class and of its bases say of a field, as a sentence: what follows its name and a
    colon, else the clause that begins with its name, else the first that holds it.
    """
    quoted, names = re.escape(f"`{name}`"), r"(?:`\w+`(?:,? and |, ))*"
    clauses = [
        clause
        for each in found.__mro__
        if issubclass(each, Spec)
        for clause in _clauses(each.__dict__.get("__doc__") or "")
    ]
    for wanted in (rf"{names}{quoted}(?:(?:,? and |, )`\w+`)*(?: \([^)]*\))?: ", rf"{names}{quoted}", rf".*?{quoted}"):
        for clause in clauses:
            if match := re.match(wanted, clause):
                said = clause[match.end() :] if match[0].endswith(": ") else clause
                return _sentence(re.sub(rf"^{quoted} (?={_NO_VERB}\b)", "", said), found.model_fields[name])
    return ""


def _clauses(text: str) -> Iterator[str]:
    """The parts of a docstring between full stops and semicolons, those inside of brackets and quotes left alone.

    >>> list(_clauses("One (a; b). `c`: two; three (Cui et al. 2019)."))
    ['One (a; b)', '`c`: two', 'three (Cui et al. 2019)']
    """
    text = re.sub(r">>>.*?(?:\n\s*\n|$)", "", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        flat, depth, start, code = " ".join(paragraph.split()), 0, 0, False
        for place, letter in enumerate(flat):
            code ^= letter == "`"
            if not code:
                depth = max(0, depth + (letter in "([{") - (letter in ")]}"))
            ends = letter in ".;" and flat[place + 1 : place + 2] in ("", " ") and not code and depth == 0
            if ends and not flat[:place].endswith(("et al", "e.g", "i.e", "cf", "sec", "eq")):
                yield flat[start:place].strip()
                start = place + 1
        if flat[start:].strip():
            yield flat[start:].strip()


_NO_VERB = "(?:an?|the|its|one|whether|which|whose|where|how|what|as)"


def _sentence(text: str, field: Any = None) -> str:
    """The text with a capital and a full stop; words that stand for themselves, as do the values of a field, keep
    their letters.

    >>> _sentence("width of a layer"), _sentence("http://host:port"), _sentence("`a` holds b")
    ('Width of a layer.', 'http://host:port.', '`a` holds b.')
    """
    first = text.partition(" ")[0].rstrip(",")
    values = re.findall(r"'(\w+)'", str(getattr(field, "annotation", "")))
    word = re.fullmatch(r"[a-z]+(?:['’-][a-z]+)*", first) and first not in values
    text = text[:1].upper() + text[1:] if word else text
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


_PAPER = re.compile(r"arXiv|\b[A-Z][\w&-]+(?: et al\.?| and [A-Z]\w+| & [A-Z]\w+)?,? \(?(?:19|20)\d\d\b")


def _papers(found: type[Spec]) -> Iterator[str]:
    """The papers that the class, or a function of its module, names; a full reference before a name with a year."""
    module = sys.modules[found.__module__]
    texts = [inspect.getdoc(found) or "", module.__doc__ or ""]
    for each in vars(module).values():
        if inspect.isfunction(each) and each.__module__ == module.__name__:
            texts.append(inspect.getdoc(each) or "")
    named: dict[str, None] = {}
    for text in texts:
        for paragraph in text.split("\n\n"):
            for sentence in re.split(r"(?<=[a-z0-9)])[.;]\s+(?=[A-Z])", " ".join(paragraph.split())):
                if _PAPER.search(sentence):
                    named[sentence.strip(" .")] = None
    full = [each for each in named if "arXiv" in each]
    yield from full or named
