"""Any table in Parquet files."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from decoct.data.base import Data, Dataset
from decoct.data.files import present
from decoct.data.parquet import ParquetCells
from decoct.data.splits import assemble, hold_out, split_files
from decoct.data.tables import MISSING, Layout, make_columns
from decoct.errors import RecipeError

ENDINGS = (".parquet", ".pq")


class ParquetTables(Data):
    """A table in Parquet files, read a part at a time, so that it may be larger than memory.

    `path`: one file, or a folder of files that are parts of one table. Where their names or folders say train,
    validation (valid, val, dev) and test (`train-00000-of-00004.parquet`, `test/0.parquet`), they are those splits;
    else all are for training. `target` the column to predict, `kind` whether it holds classes or numbers;
    `categorical` columns hold names or codes, all others numbers; `drop` columns are left out; nulls, and the texts
    `missing`, mark absent values. `test` is the fraction held out by key where there is no test file. Rows have the
    keys that a CSV file of the same texts gives them.
    """

    use: ClassVar[str] = "parquet"
    target: str
    kind: Literal["classification", "regression"] = "classification"
    categorical: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = MISSING
    test: float = Field(default=0.2, gt=0, lt=1)

    def files(self) -> list[str]:
        found = {} if self.path is None else split_files(present(self.path), ENDINGS)
        return [str(each) for files in found.values() for each in files]

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the file, or the folder of the files")
        tables = {name: ParquetCells(each) for name, each in split_files(present(self.path), ENDINGS).items()}
        layout = Layout(self.target, self.kind, self.categorical, self.drop, self.missing)
        columns = make_columns(tables, layout)
        splits = columns.splits
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        info: dict[str, Any] = {"categories": columns.categories, "target": self.target, "missing": list(self.missing)}
        return assemble(self, splits, classes=columns.classes, features=columns.features, info=info)
