"""Inspection: what opening a .pt2 file would run, read off the file without opening it in torch."""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMBERS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|models/\w+\.json|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|extra/output|\.data/\w+)"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+(\.\w+)?"
    r"|torch\.sym_(max|min|sum|sqrt|float|int|not|ite)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
NUMBERS = ("Symbol", "Integer", "Float", "Rational")
ARITHMETIC = ("Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv")
RELATIONS = ("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan")
LOGIC = ("LessThan", "GreaterThan", "And", "Or", "Not")
SIZES = frozenset((*NUMBERS, *ARITHMETIC, *RELATIONS, *LOGIC))
"""Functions of sympy that sizes are written with; none of them reads text but Symbol, as a name."""


def why_unsafe(path: Path) -> str:
    """What opening the file would do beyond reading numbers and a graph of tensor operators; empty where nothing."""
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            if not MEMBERS.fullmatch(each.filename):
                return f"it holds {each.filename!r}, which is no graph and no tensor"
            if "/sample_inputs/" in each.filename and each.file_size:
                return f"{each.filename!r} holds a pickle"
        for name in archive.namelist():
            if name.endswith("_config.json"):
                config = json.loads(archive.read(name))["config"]
                if any(each.get("use_pickle") is not False for each in config.values()):
                    return f"{name!r} names a pickle"
                if any(not re.fullmatch(r"(weight|tensor)_\d+", each["path_name"]) for each in config.values()):
                    return f"{name!r} names what is no tensor"
            elif name.endswith(".json"):
                wrong = next(_suspicious(json.loads(archive.read(name))), "")
                if wrong:
                    return wrong
    return ""


def _suspicious(value: Any) -> Iterator[str]:
    """What in the JSON of a graph is no call of a tensor operator or no expression of sizes."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "target" and not (isinstance(each, str) and OPERATORS.fullmatch(each)):
                yield f"its graph calls {str(each)[:80]!r}"
            elif key == "expr_str" and not (isinstance(each, str) and is_size(each)):
                yield f"its graph evaluates {str(each)[:80]!r}"
            else:
                yield from _suspicious(each)
    elif isinstance(value, list):
        for each in value:
            yield from _suspicious(each)


def is_size(text: str) -> bool:
    """Whether an expression is made of sizes alone.

    >>> is_size("Mul(Integer(2), Symbol('s31', positive=True, integer=True))")
    True
    >>> is_size("Symbol('s31').__class__"), is_size("sympify('1')")
    (False, False)
    """
    try:
        return _is_size(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return False


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _is_size(node.operand)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in SIZES:
        return False
    arguments = [*node.args, *(each.value for each in node.keywords)]
    if node.func.id == "Symbol" and node.args:
        first = node.args[0]
        if not (isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.isidentifier()):
            return False
        arguments = arguments[1:]
    if node.func.id == "Float":  # sympy writes Float('1.5', precision=53)
        arguments = [each for each in arguments if not _is_number_text(each)]
    return all(_is_size(each) for each in arguments)


def _is_number_text(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", node.value) is not None
    )
