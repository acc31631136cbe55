"""Quantization, the Spec of a way from a float ONNX graph to one that computes with integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from decoct.spec import Spec
from decoct.training.compression import Change

if TYPE_CHECKING:
    import numpy as np
    import onnx

Feeds = Callable[[], Iterator["Mapping[str, np.ndarray]"]]
"""Calibration batches by input name, from the start at each call; training or validation data, never test."""
Judge = Callable[["onnx.ModelProto"], float]
"""The task's main score of a graph on validation data, more is better (errors are negated)."""


@dataclass(frozen=True)
class Quantized:
    """A graph with integers, what became of each layer (kind "bits"), and `facts` for the record: ranges by tensor,
    the sensitivity of layers, layers that were kept in float and why."""

    graph: onnx.ModelProto
    changes: tuple[Change, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Quantization(Spec):
    """Works on the float graph of an exported program, after training; knows no task.

    `protect`: names of nodes, or of the modules they came from, that stay in float; `*` stands for any part.
    """

    protect: tuple[str, ...] = ()

    calibrates: ClassVar[bool] = False
    """Whether it needs `feeds`."""
    unjudged: ClassVar[Mapping[str, Any]] = {}
    """The settings, with values, under which it asks nothing but for ranges: for a trial of speed alone."""

    @abstractmethod
    def quantize(self, graph: onnx.ModelProto, feeds: Feeds | None, judge: Judge | None) -> Quantized:
        """The graph in integers; `graph` is left as it is. RecipeError where nothing can be quantized."""
