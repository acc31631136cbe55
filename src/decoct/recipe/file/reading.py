"""YAML into plain data with the place of every setting, over PyYAML's events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from decoct.errors import RecipeError, nearest
from decoct.recipe.file.places import NOWHERE, Located, Marked, Place, SettingPath, failure
from decoct.recipe.file.scalars import scalar

MAX_BYTES = 256 * 1024
MAX_DEPTH = 50
MAX_NODES = 50_000


def read(text: str, name: str = "recipe.yaml") -> Marked:
    """The recipe that `text` holds; RecipeError lists what is wrong with its YAML, with lines and columns.

    >>> marked = read("seed: 1\\ntask: {use: image_classification}")
    >>> marked.data, str(marked.place(("task", "use")))
    ({'seed': 1, 'task': {'use': 'image_classification'}}, 'recipe.yaml:2:8')
    """
    if len(text) > MAX_BYTES:
        raise failure([Located((), f"larger than {MAX_BYTES} characters; a recipe is small", Place(name, 1, 1))])
    builder = _Builder(name, here=Place(name, 1, 1))
    root = None
    try:
        root = builder.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        builder.problems.insert(0, _syntax_problem(error, name, builder.path))
    except yaml.reader.ReaderError as error:
        place = _place_of(text, error.position, name)
        builder.problems.insert(0, Located((), f"the character {_code(error.character)} is not allowed", place))
    except (ValueError, OverflowError, _TooMuch):
        # PyYAML hands the number of a \U escape to chr() unchecked.
        if not builder.problems:
            problem = Located(builder.path, "an escape \\U names no character", builder.here)
            builder.problems.append(problem)
    if builder.problems:
        raise failure(builder.problems)
    if root is None or root.value is None:
        raise failure([Located((), "the file is empty; `decoct init` writes a recipe", Place(name, 1, 1))])
    if not isinstance(root.value, dict):
        raise failure([Located((), "a recipe is a mapping: lines of `key: value`", root.place)])
    places: dict[SettingPath, Place] = {}
    values: dict[SettingPath, Place] = {}
    data = _expand(root, (), places, values)
    return Marked(data, name, places, values)


def read_file(path: Path | str) -> Marked:
    """The recipe in a file; RecipeError if it is absent, too large or not UTF-8."""
    path = Path(path)
    if not path.is_file():
        near = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"did you mean {' or '.join(found)}?" if (found := nearest(path.name, near)) else "decoct init makes one"
        raise RecipeError(f"{path}: no such file; {hint}")
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES} bytes; a recipe is small")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        place = _place_of(before, len(before), str(path))
        message = f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise failure([Located((), message, place)]) from None
    return read(text, str(path))


class _TooMuch(Exception):
    """Reading stops at once: the file asks for too much."""


@dataclass
class _Node:
    """A composed node: `value` a scalar, a list of nodes, or a dict of key -> (place of the key, node)."""

    value: Any
    place: Place
    size: int = 1
    depth: int = 1


@dataclass
class _Builder:
    """Turns PyYAML's events into nodes and notes every problem on the way."""

    name: str
    problems: list[Located] = field(default_factory=list)
    anchors: dict[str, _Node | None] = field(default_factory=dict)
    parts: list[str | int] = field(default_factory=list)
    here: Place = NOWHERE

    @property
    def path(self) -> SettingPath:
        return tuple(self.parts)

    def document(self, events: Iterator[Event]) -> _Node | None:
        root = None
        for event in events:
            if isinstance(event, DocumentStartEvent) and root is not None:
                self.report(event, "a second document (`---`); a recipe file holds one")
                break
            if isinstance(event, NodeEvent):
                root = self.node(event, events)
        return root

    def report(self, event: Event, message: str) -> None:
        self.problems.append(Located(self.path, message, self.place(event)))

    def place(self, event: Event) -> Place:
        mark = event.start_mark
        assert mark is not None
        return Place(self.name, mark.line + 1, mark.column + 1)

    def node(self, event: Event, events: Iterator[Event]) -> _Node:
        self.here = self.place(event)
        if isinstance(event, AliasEvent):
            return self.alias(event)
        assert isinstance(event, ScalarEvent | CollectionStartEvent)
        if event.tag is not None:
            self.report(event, f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')} is refused; write plain data")
        if event.anchor is not None:
            if event.anchor in self.anchors:
                self.report(event, f"the anchor &{event.anchor} is given twice")
            self.anchors[event.anchor] = None
        node = self.content(event, events)
        if node.size > MAX_NODES:
            self.report(event, f"aliases expand to more than {MAX_NODES} values")
            raise _TooMuch
        self.shallow(event, node.depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: AliasEvent) -> _Node:
        place = self.place(event)
        assert event.anchor is not None
        found = self.anchors.get(event.anchor)
        if found is None:
            inside = "stands inside what it names" if event.anchor in self.anchors else "names no anchor above it"
            self.report(event, f"the alias *{event.anchor} {inside}")
            return _Node(None, place)
        self.shallow(event, found.depth)
        return _Node(found.value, place, found.size, found.depth)

    def shallow(self, event: Event, depth: int) -> None:
        if len(self.parts) + depth > MAX_DEPTH:
            self.report(event, f"nested deeper than {MAX_DEPTH} levels")
            raise _TooMuch

    def content(self, event: ScalarEvent | CollectionStartEvent, events: Iterator[Event]) -> _Node:
        place = self.place(event)
        if isinstance(event, ScalarEvent):
            return _Node(self.value(event), place)
        self.shallow(event, 1)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(place, events)
        assert isinstance(event, MappingStartEvent)
        return self.mapping(place, events)

    def value(self, event: ScalarEvent) -> Any:
        if event.style is not None or event.tag is not None:
            return event.value
        try:
            return scalar(event.value)
        except ValueError as error:
            self.report(event, str(error))
            return None

    def sequence(self, place: Place, events: Iterator[Event]) -> _Node:
        items: list[_Node] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            self.parts.append(len(items))
            items.append(self.node(event, events))
            self.parts.pop()
        return _joined(items, place, items)

    def mapping(self, place: Place, events: Iterator[Event]) -> _Node:
        entries: dict[str, tuple[Place, _Node]] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            at = self.place(event)
            key = self.key(event, events)
            self.parts.append(key)
            if key in entries:
                self.report(event, f"given twice; the first is on line {entries[key][0].line}")
            entries.setdefault(key, (at, self.node(next(events), events)))
            self.parts.pop()
        return _joined(entries, place, [each for _, each in entries.values()])

    def key(self, event: Event, events: Iterator[Event]) -> str:
        if isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None:
            self.report(event, "merge keys (`<<`) are not read; write the keys out, or give a whole value an alias")
            return "<<"
        node = self.node(event, events)
        if isinstance(node.value, str):
            return node.value
        if isinstance(node.value, dict | list):
            self.report(event, "a mapping or list stands where a key is expected; put quotes around text with {} or []")
        elif isinstance(event, ScalarEvent) and not any(each.place == node.place for each in self.problems):
            self.report(event, f"the key {event.value or 'null'} is not text; write '{event.value}'")
        return f"?{len(self.problems)}"


def _joined(value: Any, place: Place, parts: Sequence[_Node]) -> _Node:
    size = 1 + sum(each.size for each in parts)
    return _Node(value, place, size, 1 + max((each.depth for each in parts), default=0))


def _expand(node: _Node, path: SettingPath, places: dict[SettingPath, Place], values: dict[SettingPath, Place]) -> Any:
    values[path] = node.place
    places.setdefault(path, node.place)
    if isinstance(node.value, list):
        return [_expand(each, (*path, index), places, values) for index, each in enumerate(node.value)]
    if isinstance(node.value, dict):
        for key, (place, _) in node.value.items():
            places[*path, key] = place
        return {key: _expand(each, (*path, key), places, values) for key, (_, each) in node.value.items()}
    return node.value


_PLAINER = {
    "mapping values are not allowed": "a `:` where none can stand; put quotes around text that holds `: `, "
    "or check the indentation",
    "expected <block end>": "the indentation fits none of the lines above",
    "could not find expected ':'": "no `:` after this key",
    "expected ',' or ']'": "the list [ ] is not closed, or a comma is missing",
    "expected ',' or '}'": "the mapping { } is not closed, or a comma is missing",
    "found character '\\t'": "a tab; indent with spaces",
    "found character '@'": "text that begins with @ needs quotes",
    "found character '`'": "text that begins with ` needs quotes",
    "found character '%'": "text that begins with % needs quotes",
    "found unexpected end of stream": "the quotes are not closed",
    "found unexpected document separator": "the quotes are not closed",
    "sequence entries are not allowed": "no list item can begin here; put `- ` on a line of its own",
    "expected '<document start>'": "a recipe does not begin with a line of %",
    "expected the node content": "a value is expected here",
    "found unknown escape character": 'unknown after \\; in "..." write \\\\ for a backslash',
}


def _syntax_problem(error: yaml.MarkedYAMLError, name: str, path: SettingPath) -> Located:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "cannot be read"
    message = next((plain for start, plain in _PLAINER.items() if problem.startswith(start)), problem)
    if "no `:`" in message:
        mark = error.context_mark
    if "not closed" in message and mark is not None and error.context_mark is not None:
        message += f" (noticed on line {mark.line + 1})" if error.context_mark.line != mark.line else ""
        mark = error.context_mark
    place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name, 1, 1)
    return Located(path, message, place)


def _place_of(text: str, position: int, name: str) -> Place:
    before = text[:position]
    return Place(name, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


def _code(character: Any) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"
