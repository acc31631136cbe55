"""Ensembles of trees as one module: run by torch, exported as ONNX's own operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from decoct.models.estimators.base import Head

if TYPE_CHECKING:
    import onnx

OPERATOR = "TreeEnsembleRegressor"
DOMAIN = "ai.onnx.ml"


@dataclass(frozen=True)
class Tree:
    """One tree: its nodes by index, the root first.

    A row goes left where `x[feature] <= threshold`, or where x is missing and `missing_left`. `left` < 0 marks a leaf,
    which adds `value` `[nodes, outputs]`.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    value: np.ndarray

    @property
    def leaf(self) -> np.ndarray:
        """Bool: which nodes are leaves."""
        return self.left < 0


class TreeEnsemble(nn.Module):
    """float32 `[B, F]` -> `head(base + Σ over trees of the leaf that a row falls into)`.

    Thresholds are rounded down to float32, so that a float32 number falls on the same side as before rounding.
    """

    base: Tensor

    def __init__(self, trees: list[Tree], base: np.ndarray, head: Head) -> None:
        super().__init__()
        starts = np.cumsum([0, *[len(tree.left) for tree in trees]])
        offset = np.repeat(starts[:-1], np.diff(starts))
        leaf = np.concatenate([tree.leaf for tree in trees])
        own = np.arange(len(leaf))
        left = np.where(leaf, own, np.concatenate([tree.left for tree in trees]) + offset)
        right = np.where(leaf, own, np.concatenate([tree.right for tree in trees]) + offset)
        feature = np.where(leaf, 0, np.concatenate([tree.feature for tree in trees]))
        value = np.concatenate([tree.value for tree in trees]) * leaf[:, None]
        self.depth = max(_depth(tree) for tree in trees)
        self.parameters_learned = int(2 * (~leaf).sum() + leaf.sum() * value.shape[1])
        self.head = head
        for name, array in {
            "roots": starts[:-1],
            "left": left,
            "right": right,
            "feature": feature,
            "threshold": rounded_down(np.concatenate([tree.threshold for tree in trees])),
            "missing_left": np.concatenate([tree.missing_left for tree in trees]),
            "value": value.astype(np.float32),
            "base": base.astype(np.float32),
        }.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        total: Tensor = self.head(self.base + (self._operator(x) if torch.compiler.is_exporting() else self._walk(x)))
        return total

    def _operator(self, x: Tensor) -> Tensor:
        """A node without its trees: the tracer takes minutes over lists that long, so `fill` adds them after."""
        outputs = int(self.base.shape[0])
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}", (x,), {"n_targets": outputs}, dtype=x.dtype, shape=(x.shape[0], outputs), version=3
        )

    def _walk(self, x: Tensor) -> Tensor:
        buffers: dict[str, Any] = dict(self.named_buffers(recurse=False))
        node = buffers["roots"].expand(len(x), -1)
        for _ in range(self.depth):
            seen = x.gather(1, buffers["feature"][node])
            goes_left = torch.where(seen.isnan(), buffers["missing_left"][node], seen <= buffers["threshold"][node])
            node = torch.where(goes_left, buffers["left"][node], buffers["right"][node])
        found: Tensor = buffers["value"][node].sum(1)
        return found

    def attributes(self) -> dict[str, Any]:
        """The attributes of ONNX's TreeEnsembleRegressor (ai.onnx.ml 3); node ids count from 0 in each tree."""
        buffers = {name: buffer.numpy() for name, buffer in self.named_buffers(recurse=False)}
        count, roots = len(buffers["left"]), buffers["roots"]
        tree = np.searchsorted(roots, np.arange(count), side="right") - 1
        node = np.arange(count) - roots[tree]
        leaf = buffers["left"] == np.arange(count)
        at, output = np.nonzero(np.where(leaf[:, None], buffers["value"], 0))
        return {
            "aggregate_function": "SUM",
            "post_transform": "NONE",
            "nodes_treeids": tree.tolist(),
            "nodes_nodeids": node.tolist(),
            "nodes_featureids": buffers["feature"].tolist(),
            "nodes_modes": np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
            "nodes_values": np.where(leaf, 0, buffers["threshold"]).tolist(),
            "nodes_truenodeids": np.where(leaf, 0, buffers["left"] - roots[tree]).tolist(),
            "nodes_falsenodeids": np.where(leaf, 0, buffers["right"] - roots[tree]).tolist(),
            "nodes_missing_value_tracks_true": buffers["missing_left"].astype(int).tolist(),
            "target_treeids": tree[at].tolist(),
            "target_nodeids": node[at].tolist(),
            "target_ids": output.tolist(),
            "target_weights": buffers["value"][at, output].tolist(),
        }


def fill(proto: onnx.ModelProto, module: nn.Module) -> None:
    """Adds the trees to the node that stands for a TreeEnsemble in the graph of its program; other graphs stay."""
    from onnx import helper

    if not isinstance(module, TreeEnsemble):
        return
    nodes = [node for node in proto.graph.node if node.op_type == OPERATOR and node.domain == DOMAIN]
    assert len(nodes) == 1, f"{len(nodes)} nodes stand for one ensemble"
    for name, value in module.attributes().items():
        nodes[0].attribute.append(helper.make_attribute(name, value))


def rounded_down(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each number, so `x <= threshold` is the same for every float32 x.

    >>> float(rounded_down(np.array([0.1]))[0]) <= 0.1, float(np.float32(0.1)) <= 0.1
    (True, False)
    """
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
    return np.where(near.astype(np.float64) > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def _depth(tree: Tree) -> int:
    depth = np.zeros(len(tree.left), dtype=int)
    for node in range(len(tree.left)):
        if tree.left[node] >= 0:
            depth[[tree.left[node], tree.right[node]]] = depth[node] + 1
    return int(depth.max())
