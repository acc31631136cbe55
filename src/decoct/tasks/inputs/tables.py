"""Tables: rows of columns, imputed, standardised and one-hot coded inside the exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from decoct.data.base import Dataset, Split
from decoct.data.tables import MISSING
from decoct.errors import RecipeError
from decoct.models.calls import Postprocessing, TabularProgram
from decoct.models.interface import InputKind, Port, input_ports
from decoct.tasks.inputs.base import Inputs, as_arrays, refuse_but_tensor, sizes_of
from decoct.tasks.inputs.columns import (
    Column,
    Encoding,
    TabularPreprocessing,
    table_columns,
    table_example,
    table_tensor,
)


class Tables(Inputs):
    """Rows of a table; imputation, standardisation and one-hot coding are inside the exported graph.

    `encoding` of categorical columns: `one_hot`, or `ordinal` (their numbers, standardised). `columns` hold the
    statistics of the training split. `shape` of a row is needed with `raw` alone.
    """

    use: ClassVar[str] = "tables"
    kind: ClassVar[InputKind] = "tabular"
    encoding: Encoding = "one_hot"
    columns: tuple[Column, ...] = ()
    shape: tuple[int, ...] | None = None

    def resolve_inputs(self, data: Dataset) -> dict[str, Any]:
        return {} if self.raw or self.columns else {"columns": table_columns(data, self.encoding)}

    def read(self, split: Split, indices: np.ndarray, seeds: np.ndarray | None) -> tuple[Tensor, None]:
        return table_tensor(split, indices), None

    def ports(self) -> dict[str, Port]:
        shape = self._raw_shape() if self.raw else (sum(column.width for column in self.columns),)
        return input_ports("tabular", shape)

    def preprocessing(self) -> nn.Module:
        return nn.Identity() if self.raw else TabularPreprocessing(self.columns)

    def program(self, model: nn.Module, postprocessing: Postprocessing | None) -> nn.Module:
        return TabularProgram(self.preprocessing(), model, postprocessing)

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        rows = torch.zeros(batch, *self._raw_shape()) if self.raw else table_example(self.columns, batch)
        return {"features": rows}

    def asked(self, info: Mapping[str, Any]) -> dict[str, Any]:
        known: Mapping[str, Mapping[str, float]] = info.get("categories") or {}
        columns: list[dict[str, Any]] = []
        for each in self.columns:
            codes = each.categories if each.categories is not None else known.get(each.name)
            columns.append({"name": each.name} | ({} if codes is None else {"categories": dict(codes)}))
        found = {"columns": columns, "missing": list(info.get("missing") or MISSING)}
        return {"table": found | ({} if info.get("header", True) else {"header": False})}

    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {"features": {0: "batch"}}

    def feed(self, inputs: Any) -> dict[str, np.ndarray]:
        return as_arrays(inputs, "features")

    def refuse_other(self, reader: str, value: Any) -> None:
        refuse_but_tensor(self.kind, reader, value)

    def shapes_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"shape": sizes_of(inputs["student"])}

    def _raw_shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise RecipeError("task.shape: not known; give the shape of one row")
        return self.shape
