"""300 damaged recipes: each is read, or refused with a line and a key; where the damage is known, with that line."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import pytest

from decoct.cli.scaffold import shipped
from decoct.errors import RecipeError
from decoct.recipe.file import Located, read
from decoct.recipe.recipe import Recipe

SETTINGS = re.compile(
    r"(?<=[ {\n])(version|seed|task|data|steps|use|width|inputs|budget|epochs|batch_size|objective|weight|temperature)"
    r"(?=:)"
)
NUMBERS = re.compile(r"(?<=: )[0-9][0-9.]*(?=[,}\n])")
Damage = Callable[[random.Random], Iterator[tuple[str, int, str]]]
WRONG = ["[1, 2]", "{a: 1}", "many", "null", "-1", "010", ".nan", "!!int 3", "true", '"', "*x", "1e999", "@"]


def text() -> str:
    return "".join(line for line in shipped()["digits"].read_text().splitlines(True) if not line.startswith("#"))


def line_of(content: str, position: int) -> int:
    return content.count("\n", 0, position) + 1


def misspelt(rng: random.Random, word: str) -> str:
    at = rng.randrange(len(word))
    kind = rng.randrange(3)
    if kind == 0 and len(word) > 1:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + rng.choice("qxz") + word[at:]
    return word[:at] + rng.choice("QXZ") + word[at + 1 :]


def typos(rng: random.Random) -> Iterator[tuple[str, int, str]]:
    """A recipe with one misspelt key, its line and the key."""
    while True:
        content = "\n" + text()
        found = rng.choice(list(SETTINGS.finditer(content)))
        word = misspelt(rng, found[0])
        yield content[: found.start()] + word + content[found.end() :], line_of(content, found.start()), word


def wrong_values(rng: random.Random) -> Iterator[tuple[str, int, str]]:
    """A recipe with one number replaced by something else, and its line."""
    while True:
        content = text()
        found = rng.choice(list(NUMBERS.finditer(content)))
        yield content[: found.start()] + rng.choice(WRONG) + content[found.end() :], line_of(content, found.start()), ""


def broken(rng: random.Random) -> Iterator[tuple[str, int, str]]:
    """A recipe with some characters lost, doubled or replaced; the line is not known."""
    while True:
        content = text()
        at = rng.randrange(len(content))
        new = rng.choice(
            ["", "\t", "[", "]", "{", "}", ":", "'", '"', "\n", " ", "-", "&a ", "*a", "!x ", "#", ",", "\x07"]
        )
        yield content[:at] + new + content[at + rng.randrange(3) :], 0, ""


@pytest.mark.parametrize("kind", [typos, wrong_values, broken], ids=lambda each: each.__name__)
def test_damaged_recipes(kind: Damage) -> None:
    damages = kind(random.Random(kind.__name__))
    refused = 0
    for _ in range(100):
        content, line, key = next(damages)
        try:
            Recipe.from_marked(read(content, "r.yaml"))
        except RecipeError as error:
            refused += 1
            check(error, content, line, key)
    assert refused >= {"typos": 100, "wrong_values": 85, "broken": 50}[kind.__name__]


def check(error: RecipeError, content: str, line: int, key: str) -> None:
    context = f"{error}\n{content}"
    assert error.problems, context
    for problem in error.problems:
        assert isinstance(problem, Located), context
        assert 1 <= problem.place.line <= content.count("\n") + 1, context
        assert problem.path or problem.place.column >= 1, context
    assert all(each.startswith("r.yaml:") for each in str(error).splitlines()), context
    if line:
        assert error.problems[0].place.line == line or line in [each.place.line for each in error.problems], context
    if key:
        assert key in str(error), context
