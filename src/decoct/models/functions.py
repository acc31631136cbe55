"""Fingerprints of functions: what they are made of, as far as Python tells."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.errors import RecipeError
from decoct.models.given import fingerprint

PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes)


def function_fingerprint(name: str, function: Callable[..., Any]) -> str:
    """What changes when the function does: its attribute `fingerprint` (a text), else SHA-256 of what it is made of.

    That is its source (typed into a shell: its bytecode), its defaults and the values that it captured; of a partial
    also its arguments, of a method or an object that is called the source of the class and the object's attributes.
    What it reads from its module (globals) is not seen. RecipeError where something has neither source nor bytes.

    >>> def one(rows): return [0] * len(rows)
    >>> one.fingerprint = "version 1"
    >>> function_fingerprint("teacher", one)
    'version 1'
    """
    own = getattr(function, "fingerprint", None)
    if isinstance(own, str):
        return own
    try:
        made = _of(function, ())
    except _Unknown as error:
        raise RecipeError(
            f"{name}: nobody can tell when this function changes, as {error}; wrap it in a function of your own and "
            "give that a name for what it answers: def ask(rows): ...; ask.fingerprint = 'service X, version 3'"
        ) from None
    return hashlib.sha256(made.encode()).hexdigest()


class _Unknown(Exception):
    """Something that cannot be written down; the text says what."""


def _of(value: Any, above: tuple[int, ...]) -> str:
    """A text that is equal for equal values; `above`: the ids of what holds it."""
    if id(value) in above:
        return f"above {above.index(id(value))}"
    within = (*above, id(value))
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, nn.Module):
        return f"module {fingerprint(value)}"
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _array(value.detach().cpu() if isinstance(value, Tensor) else value)
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__}"
    if isinstance(value, types.FunctionType):
        return _function(value, within)
    if isinstance(value, functools.partial):
        return f"partial {_of((value.func, value.args, value.keywords), within)}"
    if isinstance(value, types.MethodType):
        return f"method {_of((value.__func__, value.__self__), within)}"
    if isinstance(value, type):
        return f"class {value.__qualname__} {_source(value)}"
    return _collection(value, within)


def _collection(value: Any, above: tuple[int, ...]) -> str:
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        return f"{type(value).__name__} {[(_of(key, above), _of(each, above)) for key, each in value.items()]}"
    if isinstance(value, set | frozenset):
        return f"set {sorted(_of(each, above) for each in value)}"
    if type(value) in (list, tuple):
        return f"{type(value).__name__} {[_of(each, above) for each in value]}"
    built_in = any(each.__module__ == "builtins" for each in type(value).__mro__[:-1])
    held = None if built_in else getattr(value, "__dict__", None)
    if held is None:
        raise _Unknown(f"{type(value).__qualname__} objects show nothing of what they hold")
    return f"object {_of(type(value), above)} {_of(held, above)}"


def _function(function: types.FunctionType, above: tuple[int, ...]) -> str:
    """The source; with what it captured and its defaults where it has any."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    try:
        captured = {name: cell.cell_contents for name, cell in cells.items()}
    except ValueError:
        raise _Unknown(f"{function.__qualname__} captures a name that has no value yet") from None
    held = (captured, function.__defaults__ or (), function.__kwdefaults__ or {})
    return _source(function.__code__) + (f"\n{_of(held, above)}" if any(held) else "")


def _source(value: types.CodeType | type) -> str:
    """The source; where it was typed into a shell the bytecode, which another version of Python may write otherwise."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        if isinstance(value, types.CodeType):
            return _bytecode(value)
        methods = {name: each for name, each in vars(value).items() if isinstance(each, types.FunctionType)}
        if not methods:
            raise _Unknown(f"the source of {value.__qualname__} cannot be read") from None
        return repr({name: _bytecode(each.__code__) for name, each in methods.items()})


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(each) if isinstance(each, types.CodeType) else _of(each, ()) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _array(value: Any) -> str:
    if isinstance(value, Tensor):
        flat = value.contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    else:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise _Unknown("an array of objects has no bytes of its own")
        raw = array.tobytes()
    return f"array {tuple(value.shape)} {value.dtype} {hashlib.sha256(raw).hexdigest()}"
