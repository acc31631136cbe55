"""Static: 8-bit codes for weights and activations, their ranges fixed from calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from decoct.errors import RecipeError
from decoct.quantization._graph import Graph, chosen, prepared
from decoct.quantization._layers import Flow, Layer, flow, layers_of
from decoct.quantization._qdq import Writer
from decoct.quantization._ranges import histograms
from decoct.quantization.base import Feeds, Judge, Quantization, Quantized
from decoct.quantization.observers import Affine, ObserverName, observe
from decoct.quantization.sensitivity import Cost, Mixture, costs, floor_of, mixture
from decoct.training.compression import Change

if TYPE_CHECKING:
    import onnx


class Static(Quantization):
    """Weights and activations in 8 bits, as QDQ pairs that ONNX Runtime turns into int8 kernels.

    Activations are unsigned with a zero point, weights signed and symmetric, biases 32 bits. `observer` chooses the
    range of an activation: min_max, percentile (`percentile` percent of the values), entropy or mse; `weights` that of
    a weight, `per_channel` or one a tensor; `symmetric` activations have code 128 for zero. `embeddings` are stored in
    8 bits, a scale a row. What only moves or scales pixels before the first layer stays in float.

    `max_drop`, `min_quality`: the layers that cost most stay in float until the task's main score on validation data
    has dropped by no more, or is no less (more is better; errors count as negative). `sensitivity` records what each
    layer costs alone, and what all others cost; it takes two evaluations a layer.
    """

    use: ClassVar[str] = "static"
    calibrates: ClassVar[bool] = True
    unjudged: ClassVar[Mapping[str, Any]] = {"max_drop": None, "min_quality": None, "sensitivity": False}

    observer: ObserverName = "min_max"
    percentile: float = Field(default=99.99, gt=50, le=100)
    weights: Literal["min_max", "mse"] = "min_max"
    per_channel: bool = True
    symmetric: bool = False
    embeddings: bool = True
    max_drop: float | None = Field(default=None, ge=0)
    min_quality: float | None = None
    sensitivity: bool = False

    def quantize(self, graph: onnx.ModelProto, feeds: Feeds | None, judge: Judge | None) -> Quantized:
        if feeds is None:
            raise RecipeError("static quantization needs calibration data; give some, or use scheme dynamic")
        plan = self.plan(graph, feeds)
        table: list[Cost] = costs(plan, feeds, judge) if self.sensitivity else []
        facts: dict[str, Any] = {"ranges": plan.ranges}
        kept: tuple[str, ...] = ()
        if self.max_drop is not None or self.min_quality is not None:
            mixed = self._mixture(plan, feeds, judge, table)
            kept = mixed.kept
            facts["mixture"] = {**mixed.data(), "kept": [plan.layers[node].module for node in kept]}
        if table:
            facts["sensitivity"] = [{"layer": plan.layers[each.node].module, **asdict(each)} for each in table]
        nodes = [node for node in plan.able if node not in kept]
        return Quantized(plan.write(nodes), plan.changes(nodes, "kept in float for the budget"), facts)

    def _mixture(self, plan: Plan, feeds: Feeds, judge: Judge | None, table: list[Cost]) -> Mixture:
        if judge is None:
            raise RecipeError("max_drop and min_quality are judged on validation data, and there are none; give some")
        float_score = judge(plan.write(()))
        floor = floor_of(float_score, self.min_quality, self.max_drop)

        def order() -> list[str]:
            table.extend([] if table else costs(plan, feeds))
            return [each.node for each in table]

        return mixture(plan, order, judge, floor, float_score)

    def plan(self, graph: onnx.ModelProto, feeds: Feeds) -> Plan:
        """What can be quantized and with which codes; RecipeError where nothing can, with the reasons."""
        tables = Graph(prepared(graph))
        layers = layers_of(tables)
        spared = chosen(self.protect, {name: each.module for name, each in layers.items()})
        causes = {name: each.cause for name, each in layers.items() if each.cause}
        causes |= {name: "protected" for name in layers if name in spared}
        causes |= {name: "embeddings: false" for name, each in layers.items() if each.table and not self.embeddings}
        able = [name for name in layers if name not in causes]
        if not any(not layers[name].table for name in able):
            reasons = "; ".join(f"{layers[name].module}: {cause}" for name, cause in causes.items())
            raise RecipeError(f"static quantization: no layer can take integers: {reasons or 'there is none'}")
        paths = flow(tables, [layers[name] for name in able])
        seen = histograms(tables.proto, dict.fromkeys(paths.tensors.values()), feeds)
        codes = {
            name: capped(
                observe(self.observer, each, percentile=self.percentile, symmetric=self.symmetric), paths.caps.get(name)
            )
            for name, each in seen.items()
        }
        codes = {name: codes[source] for name, source in paths.tensors.items()}
        writer = Writer(tables, codes, per_channel=self.per_channel, weights=self.weights)
        return Plan(tables, layers, able, causes, paths, codes, writer)


@dataclass(frozen=True)
class Plan:
    """A prepared graph, its layers by node, those that can take integers, why the others cannot, and the codes."""

    graph: Graph
    layers: Mapping[str, Layer]
    able: Sequence[str]
    causes: Mapping[str, str]
    paths: Flow
    codes: Mapping[str, Affine]
    writer: Writer

    def write(self, nodes: Sequence[str]) -> onnx.ModelProto:
        """The graph with these layers in integers."""
        return self.writer.write({name: self.layers[name] for name in nodes})

    def changes(self, nodes: Sequence[str], why: str = "") -> tuple[Change, ...]:
        """What becomes of each layer when these are in integers; `why` the others that could be are not."""
        return tuple(
            Change(each.module, "bits", 32, 8)
            if name in nodes
            else Change(each.module, "bits", 32, 32, self.note(name, why))
            for name, each in self.layers.items()
        )

    def note(self, node: str, why: str) -> str:
        """Why a layer stays in float."""
        return self.causes.get(node, why)

    @property
    def ranges(self) -> dict[str, Any]:
        """Scale and zero point of each quantized activation."""
        sources = dict.fromkeys(self.paths.tensors.values())
        return {name: {"scale": self.codes[name].scale, "zero_point": self.codes[name].zero_point} for name in sources}


def capped(code: Affine, cap: float | None) -> Affine:
    """The code with no value above `cap`, so that clipping there is the quantizer's own; else ReLU6 stays in float."""
    if cap is None or code.zero_point != 0:
        return code
    scale = np.float32(code.scale)
    while np.float32(255) * scale > np.float32(cap):
        scale = np.nextafter(scale, np.float32(0))
    return Affine(float(scale), 0, code.low, code.high)
