"""Any table in a delimited text file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from decoct.data.base import Data, Dataset
from decoct.data.cells import Delimited
from decoct.data.files import present
from decoct.data.splits import assemble, hold_out
from decoct.data.tables import MISSING, Layout, make_columns
from decoct.errors import RecipeError


class CSV(Data):
    """A table in a delimited text file, gzip or not.

    `target` the column to predict, `kind` whether it holds classes or numbers; `categorical` columns hold names, all
    others numbers; `drop` columns are left out; `missing` marks absent values. Without `header` columns are called "0",
    "1", and so on. `test` a fraction held out by key, or give the test file as `test_path`. `delimiter`: the character
    between columns. `test_path`: a file of test samples. `header`: the first line names the columns.
    """

    use: ClassVar[str] = "csv"
    target: str
    kind: Literal["classification", "regression"] = "classification"
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    header: bool = True
    missing: tuple[str, ...] = MISSING
    test: float = Field(default=0.2, gt=0, lt=1)
    test_path: Path | None = None

    def files(self) -> list[str]:
        return [str(present(each)) for each in (self.path, self.test_path) if each is not None]

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the file")
        tables = {"train": Delimited(present(self.path), self.delimiter, self.header)}
        if self.test_path is not None:
            tables["test"] = Delimited(present(self.test_path), self.delimiter, self.header)
        layout = Layout(self.target, self.kind, self.categorical, self.drop, self.missing)
        columns = make_columns(tables, layout)
        splits = columns.splits
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        info: dict[str, Any] = {"categories": columns.categories, "target": self.target, "missing": list(self.missing)}
        info |= {} if self.header else {"header": False}
        return assemble(self, splits, classes=columns.classes, features=columns.features, info=info)
