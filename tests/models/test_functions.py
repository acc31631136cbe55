import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decoct.errors import RecipeError
from decoct.models.black_box import given_function


def print_of(function):
    return given_function("teacher", function).fingerprint


def above(limit, rows=None):
    return ["high" if row > limit else "low" for row in rows]


def closing_over(value):
    def ask(rows):
        return [value for _ in rows]

    return ask


def with_default(value):
    def ask(rows, *, chosen=value):
        return [chosen for _ in rows]

    return ask


class Several(list):
    pass


class Asking:
    def __init__(self, limit):
        self.limit = limit

    def __call__(self, rows):
        return above(self.limit, rows)

    def ask(self, rows):
        return above(self.limit, rows)


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


VALUES = [
    *(0, 1, 0.5, "a", b"a", None, (1, 2), [1, 2], (2, 1), {"a": 1}, {"a": 2}, {1, 2}, {1, 3}),
    *(np.arange(3), np.arange(3.0), np.arange(4), torch.arange(3), torch.zeros(2), -torch.ones(2)),
]


@pytest.mark.parametrize("make", [closing_over, with_default, Asking, lambda v: Asking(v).ask])
def test_what_a_function_holds_decides(make):
    prints = [print_of(make(each)) for each in [*VALUES, closing_over(1), closing_over(2), linear(0), linear(1)]]
    assert len(set(prints)) == len(prints)
    again = [print_of(make(each)) for each in [*VALUES, closing_over(1), closing_over(2), linear(0), linear(1)]]
    assert again == prints
    assert print_of(functools.partial(above, 1)) == print_of(functools.partial(above, 1))
    assert print_of(functools.partial(above, 1)) != print_of(functools.partial(above, 2))


def test_another_program_finds_the_same():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import functools, test_functions as t;"
        "print(t.print_of(t.Asking({'b', 'a'})), t.print_of(functools.partial(t.above, 3)))"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [print_of(Asking({"a", "b"})), print_of(functools.partial(above, 3))]


def typed(text):
    """What a text defines as `made`, whose source nobody can read."""
    found = {"__name__": "shell"}
    exec(text, found)
    return found["made"]


def test_what_was_typed_into_a_shell_is_told_apart_too():
    one, two = (
        "def made(rows): return [(lambda r: r > {})(r) for r in rows]",
        "class C:\n  def __call__(s, r): return {}",
    )
    two += "\nmade = C()"
    prints = [print_of(typed(text.format(number))) for text in (one, two) for number in (1, 2)]
    assert len(set(prints)) == 4
    assert prints == [print_of(typed(text.format(number))) for text in (one, two) for number in (1, 2)]


def test_a_function_that_holds_itself_has_an_end():
    def ask(rows):
        return ask(rows[1:]) if len(rows) > 1 else rows

    assert len(print_of(ask)) == 64


def test_what_shows_nothing_of_itself_is_refused_and_may_say_its_fingerprint():
    for odd in (
        len,
        functools.partial(len),
        closing_over(iter([1])),
        closing_over(np.array([{}])),
        closing_over(Several()),
    ):
        with pytest.raises(RecipeError, match=r"teacher: nobody can tell when .*ask\.fingerprint = "):
            print_of(odd)
    named = closing_over(iter([1]))
    named.fingerprint = "service 3"
    assert print_of(named) == "service 3"
