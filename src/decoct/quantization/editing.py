"""Editing: an ONNX graph whose constant products, recurrences and tables are replaced, one node at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.errors import PathError, RecipeError, did_you_mean
from decoct.quantization.folding import folded

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Product:
    """A MatMul or Gemm by a constant: its node, the module it came from, weights `[K, N]`, and what is added after."""

    node: Any
    path: str
    weights: np.ndarray
    bias: str | None = None


class Editing:
    """A copy of a graph in work: moved constants folded, new nodes in place of old ones, unused constants removed.

    `protect`: patterns of nodes or modules that stay as they are; PathError for one that names none.
    """

    def __init__(self, proto: onnx.ModelProto, protect: Sequence[str] = ()) -> None:
        self.model = folded(proto)
        self._nodes = list(self.model.graph.node)  # kept: nodes are told apart by identity
        self.constants = {each.name: each for each in self.model.graph.initializer}
        self._uses = Counter(name for node in self._nodes for name in node.input)
        self._after: dict[int, list[Any]] = {}
        self._gone: set[int] = set()
        self._names = {name for node in self._nodes for name in [*node.input, *node.output]}
        self._names |= set(self.constants)
        self._protected = self._find_protected(protect)

    def nodes(self, *kinds: str) -> Iterator[Any]:
        """The nodes of these operators, in order."""
        return (node for node in self._nodes if node.op_type in kinds)

    def value(self, name: str) -> np.ndarray:
        """A constant's numbers."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def is_float(self, name: str) -> bool:
        """Whether a name is a constant of 32-bit floats."""
        return name in self.constants and self.constants[name].data_type == 1

    def keeps(self, node: Any) -> bool:
        """Whether a node is protected."""
        return id(node) in self._protected

    def path(self, node: Any) -> str:
        """The module that a node came from, read off the names of its weights; else the node's own name."""
        for name in node.input[1:]:
            if name in self.constants and name.rpartition(".")[2].rstrip("0123456789") in ("weight", "W"):
                return str(name.rpartition(".")[0])
        for each in self._nodes:
            if each.op_type == "Add" and node.output[0] in each.input:
                for name in each.input:
                    if name.endswith(".bias") and self._uses[name] == 1:
                        return str(name.removesuffix(".bias"))
        return str(node.name)

    def products(self) -> Iterator[Product]:
        """Every MatMul and Gemm by a constant `[K, N]`, scale factors folded in."""
        for node in self.nodes("MatMul", "Gemm"):
            if not self.is_float(node.input[1]) or len(self.constants[node.input[1]].dims) != 2:
                continue
            weights, bias = self.value(node.input[1]), None
            if node.op_type == "Gemm":
                options = {each.name: each.i if each.type == 2 else each.f for each in node.attribute}
                bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
                if options.get("transA", 0) or (bias and options.get("beta", 1.0) != 1.0):
                    continue
                weights = (weights.T if options.get("transB", 0) else weights) * np.float32(options.get("alpha", 1.0))
            yield Product(node, self.path(node), weights, bias)

    def only_use(self, name: str, kind: str) -> bool:
        """Whether every node that takes a constant is of one operator, and takes it first."""
        users = [node for node in self._nodes if name in node.input]
        return all(node.op_type == kind and node.input[0] == name for node in users)

    def name(self, stem: str) -> str:
        """A name that is not taken."""
        found, number = stem, 0
        while found in self._names:
            number += 1
            found = f"{stem}_{number}"
        self._names.add(found)
        return found

    def constant(self, stem: str, value: np.ndarray) -> str:
        """Adds a constant; its name."""
        from onnx import numpy_helper

        return self.add(numpy_helper.from_array(np.ascontiguousarray(value), self.name(stem)))

    def add(self, tensor: Any) -> str:
        """Adds a constant that is made already; its name."""
        self.model.graph.initializer.append(tensor)
        self.constants[tensor.name] = tensor
        return str(tensor.name)

    def put(self, place: Any, kind: str, inputs: Sequence[str], output: str | None = None, **options: Any) -> list[str]:
        """Adds a node where `place` stands; `outputs=` (default 1) of them are named after it. Their names."""
        from onnx import helper

        count = options.pop("outputs", 1)
        stem = output or f"{place.name or place.op_type}_{kind}"
        made = [output] if output else [self.name(stem) for _ in range(count)]
        node = helper.make_node(kind, list(inputs), made, name=self.name(f"{place.name}_{kind}_node"), **options)
        self._after.setdefault(id(place), []).append(node)
        return made

    def remove(self, node: Any) -> None:
        """Takes a node out; what was put in its place gives its output."""
        self._gone.add(id(node))

    def finish(self, *, microsoft: bool = False, opset: int = 0) -> onnx.ModelProto:
        """The new graph, without constants that nothing uses; at `opset` of the standard operators at least."""
        from onnx import helper

        graph = self.model.graph
        order = []
        for node in self._nodes:
            order += self._after.get(id(node), [])
            if id(node) not in self._gone:
                order.append(node)
        copies = [type(node).FromString(node.SerializeToString()) for node in order]
        del graph.node[:]
        graph.node.extend(copies)
        used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
        kept = [each for each in graph.initializer if each.name in used]
        kept = [type(each).FromString(each.SerializeToString()) for each in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for each in self.model.opset_import:
            if each.domain in ("", "ai.onnx"):
                each.version = max(each.version, opset)
        if microsoft and all(each.domain != MICROSOFT for each in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return self.model

    def _find_protected(self, patterns: Sequence[str]) -> set[int]:
        names = {id(node): {node.name, self.path(node)} for node in self._nodes}
        known = sorted({each for found in names.values() for each in found if each})
        kept: set[int] = set()
        for pattern in patterns:
            found = {
                key
                for key, each in names.items()
                for name in each
                if fnmatchcase(name, pattern) or _under(name, pattern)
            }
            if not found:
                raise PathError(f"protect: no node or module {pattern!r}; {did_you_mean(pattern, known)}")
            kept |= found
        return kept


def with_small_tables(editing: Editing, least: int = 256) -> list[tuple[str, float]]:
    """Every Gather of rows from a float table reads int8 rows and a scale for each row; paths and SQNR of the tables.

    Tables of fewer than `least` numbers stay, and those that something else uses too.
    """
    from onnx import TensorProto

    from decoct.quantization.weights import by_channel, sqnr

    tables: dict[str, tuple[str, str]] = {}
    found = []
    for node in editing.nodes("Gather"):
        table = node.input[0]
        if not editing.is_float(table) or len(editing.constants[table].dims) != 2 or editing.keeps(node):
            continue
        if any(each.name == "axis" and each.i != 0 for each in node.attribute):
            continue
        if not editing.only_use(table, "Gather") or int(np.prod(editing.constants[table].dims)) < least:
            continue
        if table not in tables:
            exact = editing.value(table)
            values, scales = by_channel(exact, axis=0)
            tables[table] = (editing.constant(f"{table}_int8", values), editing.constant(f"{table}_scale", scales))
            path = table.removesuffix(".weight")
            found.append((path, sqnr(exact, values * scales)))
        rows, scale = (editing.put(node, "Gather", [each, node.input[1]], axis=0)[0] for each in tables[table])
        (floats,) = editing.put(node, "Cast", [rows], to=TensorProto.FLOAT)
        editing.put(node, "Mul", [floats, scale], node.output[0])
        editing.remove(node)
    return found


def nothing_found(scheme: str, what: str, instead: str) -> RecipeError:
    """The error where a graph has nothing that a scheme works on."""
    return RecipeError(f"scheme {scheme}: the graph has no {what} that is not protected; {instead}")


def _under(name: str, pattern: str) -> bool:
    return name.startswith(f"{pattern}.")
