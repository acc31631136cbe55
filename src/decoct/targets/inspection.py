"""Inspection: what opening a .pt2 file would run, read off the file without opening it in torch."""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from decoct.memory import require_unzipped

MEMBERS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|\w+_weights_config\.json)|data/constants/(tensor_\d+|\w+_constants_config\.json)"
    r"|models/\w+\.json|data/sample_inputs/\w+\.pt|archive_format|archive_version|byteorder|extra/output|\.data/\w+)"
)
OPERATORS = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.(\w+)(?:\.(\w+))?")
FUNCTIONS = re.compile(
    r"torch\.sym_(max|min|sum|sqrt|float|int|not|ite)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
TYPES = frozenset(("Tensor", "int", "SymInt", "bool", "float", "number", "complex", "Device", "Generator"))
"""Types of arguments, alone or in lists, that say what to compute; text, storages and classes are not among them."""
WORDS = frozenset(
    ("approximate", "rounding_mode", "padding", "padding_side", "pad_mode", "mode", "indexing", "interpolation")
    + ("reduce", "norm", "ord", "p", "UPLO", "side", "driver", "equation", "activation", "api_name", "assert_msg")
)
"""Arguments of operators that are text and name a way to compute, no file."""
STORAGE = re.compile(r"from_file|save|set_?|set_data|set_source_\w*|\w*(resize|storage)\w*")
"""Operators that read or write files, or lay hands on the memory behind a tensor."""
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict")
NUMBERS = ("Symbol", "Integer", "Float", "Rational")
ARITHMETIC = ("Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv")
RELATIONS = ("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan")
LOGIC = ("LessThan", "GreaterThan", "And", "Or", "Not")
SIZES = frozenset((*NUMBERS, *ARITHMETIC, *RELATIONS, *LOGIC))
"""Functions of sympy that sizes are written with; none of them reads text but Symbol, as a name."""


def why_unsafe(path: Path) -> str:
    """What opening the file would do beyond reading numbers and a graph of tensor operators; empty where nothing."""
    require_unzipped(path)
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            if not MEMBERS.fullmatch(each.filename):
                return f"it holds {each.filename!r}, which is no graph and no tensor"
            if "/sample_inputs/" in each.filename and each.file_size:
                return f"{each.filename!r} holds a pickle"
        if not _is_read_alike(path, archive):
            return "its table of contents can be read in two ways"
        for name in archive.namelist():
            wrong = _wrong(name, archive.read(name)) if name.endswith(".json") else ""
            if wrong:
                return wrong
    return ""


def _is_read_alike(path: Path, archive: zipfile.ZipFile) -> bool:
    """Whether torch's reader, which opens the file in the end, finds the same members with the same text in JSON."""
    names = archive.namelist()
    if len({name.casefold() for name in names}) != len(names) or len({name.split("/")[0] for name in names}) != 1:
        return False
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        found = reader.get_all_records()
        if sorted(found) != sorted(name.partition("/")[2] for name in names):
            return False
        read = [name for name in names if name.endswith(".json") or "/sample_inputs/" in name]
        return all(reader.get_record(name.partition("/")[2]) == archive.read(name) for name in read)
    except RuntimeError:
        return False


def _wrong(name: str, content: bytes) -> str:
    """What is wrong in a member in JSON: a graph, or a table of weights."""
    try:
        value = json.loads(content)
        if not name.endswith("_config.json"):
            return next(_suspicious(value), "")
    except RecursionError:
        return f"{name!r} is nested too deeply"
    config = value["config"]
    if any(each.get("use_pickle") is not False for each in config.values()):
        return f"{name!r} names a pickle"
    if any(not re.fullmatch(r"(weight|tensor)_\d+", each["path_name"]) for each in config.values()):
        return f"{name!r} names what is no tensor"
    return ""


def _suspicious(value: Any) -> Iterator[str]:
    """What in the JSON of a graph is no call of a tensor operator, no expression of sizes, no plain container."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key in ("target", "as_operator") and not (isinstance(each, str) and is_operator(each)):
                yield f"its graph calls {str(each)[:80]!r}"
            elif key == "expr_str" and not (isinstance(each, str) and is_size(each)):
                yield f"its graph evaluates {str(each)[:80]!r}"
            elif key in ("in_spec", "out_spec") and not (isinstance(each, str) and is_tree(each)):
                yield f"its {key} holds more than tuples, lists and dicts: {str(each)[:80]!r}"
            else:
                yield from _suspicious(each)
    elif isinstance(value, list):
        for each in value:
            yield from _suspicious(each)


def is_operator(text: str) -> bool:
    """Whether a graph may call this: it computes from tensors and numbers, and touches no file and no storage.

    An operator is known by its schema in torch; one that takes text is taken where that names a way to compute.

    >>> is_operator("torch.ops.aten.gelu.default"), is_operator("_operator.mul")
    (True, True)
    >>> is_operator("torch.ops.aten.from_file.default"), is_operator("torch.load")
    (False, False)
    """
    found = OPERATORS.fullmatch(text)
    if found is None:
        return FUNCTIONS.fullmatch(text) is not None
    package, name, overload = found.groups()
    if STORAGE.fullmatch(name):
        return False
    schemas = torch._C._jit_get_schemas_for_operator(f"{package}::{name}")
    if overload is not None:
        schemas = [each for each in schemas if (each.overload_name or "default") == overload]
    return bool(schemas) and all(_is_plain(each) for schema in schemas for each in schema.arguments)


def _is_plain(argument: Any) -> bool:
    """Whether an argument of an operator says what to compute and nothing else."""
    inner = re.sub(r"Optional\[|List\[|\]", "", str(argument.type))
    return inner in TYPES or (inner == "str" and argument.name in WORDS)


def is_tree(text: str) -> bool:
    """Whether a tree spec of torch is made of tuples, lists and dicts whose keys are plain strings.

    torch imports the module that a spec of another kind names (an enum, the factory of a defaultdict).

    >>> is_tree('[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]')
    True
    >>> is_tree('[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]')
    False
    """
    try:
        spec = json.loads(text)
        return isinstance(spec, list) and len(spec) == 2 and spec[0] == 1 and _is_tree(spec[1])
    except (ValueError, RecursionError):
        return False


def _is_tree(node: Any) -> bool:
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        return False
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list) or not all(_is_tree(each) for each in children):
        return False
    if kind is None:
        return context is None and not children
    if kind not in CONTAINERS or not isinstance(context, str):
        return False
    keys = json.loads(context)
    return keys is None or (isinstance(keys, list) and all(isinstance(each, str) for each in keys))


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
