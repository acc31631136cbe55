"""Default of credit card clients (Taiwan, 2005)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from decoct.data.base import Data, Dataset
from decoct.data.files import absent, cache_folder, failed, present
from decoct.data.splits import assemble, hold_out
from decoct.data.tables import Layout, Table, make_columns, read_table
from decoct.errors import DataError

OPENML = 42477
TARGET = "default.payment.next.month"
CATEGORICAL = ("SEX", "EDUCATION", "MARRIAGE")
MONTHS = tuple(f"{name}{month}" for name in ("BILL_AMT", "PAY_AMT") for month in range(1, 7))
PAID = tuple(f"PAY_{month}" for month in (0, 2, 3, 4, 5, 6))
FEATURES = ("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", *PAID, *MONTHS)
WANTED = "FILE, UCI_Credit_Card.csv(.gz) or its folder"


class CreditDefault(Data):
    """Default of 30,000 credit card clients: 23 attributes, two classes, `ID` left out.

    `path`: UCI_Credit_Card.csv, gzip or not, or its folder; without it scikit-learn fetches the table from OpenML
    (data set 42477). There is no split of its own: 20 % are the test split, chosen by key. Yeh, Lien 2009.
    """

    use: ClassVar[str] = "credit_default"

    def open(self, *, offline: bool = False) -> Dataset:
        table = _read(self.path) if self.path is not None else _fetch(offline)
        drop = ("ID",) if "ID" in table.names else ()
        columns = make_columns(
            {"train": table}, Layout(TARGET, "classification", CATEGORICAL, drop, classes=("0", "1"))
        )
        train, test = hold_out(columns.splits["train"], 0.2, "test")
        info = {"categories": columns.categories, "target": TARGET}
        return assemble(
            self, {"train": train, "test": test}, classes=("paid", "default"), features=columns.features, info=info
        )


def _read(path: Path) -> Table:
    path = present(path)
    if path.is_dir():
        found = sorted(path.glob("UCI_Credit_Card.csv*"))
        if not found:
            raise DataError(f"data.path={path}: no UCI_Credit_Card.csv there; give data.path={WANTED}")
        path = found[0]
    table = read_table(path)
    absent_columns = [name for name in (*FEATURES, TARGET) if name not in table.names]
    if absent_columns:
        raise DataError(f"{path}: no column {absent_columns[0]!r}; for another table use {{use: csv}}")
    return table


def _fetch(offline: bool) -> Table:
    """The table that was downloaded before, or OpenML's, whose columns carry other names in the same order."""
    kept = cache_folder("credit_default") / "UCI_Credit_Card.csv"
    if kept.is_file():
        return _read(kept)
    if offline:
        raise absent("credit_default", WANTED)
    from sklearn.datasets import fetch_openml

    try:
        found = fetch_openml(data_id=OPENML, data_home=str(kept.parent), as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:
        raise failed("credit_default", error, WANTED) from None
    names = (*FEATURES, TARGET)
    values = [_decoded(column, found.categories.get(name)) for name, column in zip(found.feature_names, found.data.T)]
    columns = [*values, list(found.target)]
    if len(columns) != len(names):
        raise DataError(f"OpenML {OPENML}: {len(columns)} columns, expected {len(names)}")
    rows = [",".join(map(_cell, row)) for row in zip(*columns)]
    part = kept.with_suffix(".part")
    part.write_text("\n".join([",".join(names), *rows]) + "\n", encoding="utf-8")
    part.replace(kept)
    return _read(kept)


def _decoded(column: np.ndarray, categories: Sequence[str] | None) -> list[Any]:
    """A column's values; those of a nominal one are given as places in its list of categories."""
    return column.tolist() if categories is None else [categories[int(place)] for place in column]


def _cell(value: object) -> str:
    number = float(str(value))
    return str(int(number)) if number.is_integer() else repr(number)
