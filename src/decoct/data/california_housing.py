"""House values of Californian census block groups, 1990."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import absent, cache_folder, failed, present
from decoct.data.hashing import content_keys
from decoct.data.splits import assemble, hold_out
from decoct.data.tables import Layout, make_columns, read_table
from decoct.errors import DataError

TARGET = "median_house_value"
WANTED = "FILE, housing.csv(.gz) with the column median_house_value, or its folder"


class CaliforniaHousing(Data):
    """Median house value, in dollars, of 20,640 Californian block groups: a regression.

    `path`: housing.csv, gzip or not, or its folder: 9 attributes, `ocean_proximity` categorical, 207 values of
    `total_bedrooms` missing. Without it scikit-learn's fetch_california_housing: 8 numeric attributes of the same
    groups. There is no split of its own: 20 % are the test split, chosen by key. Pace, Barry 1997.
    """

    use: ClassVar[str] = "california_housing"

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            whole, features = _fetch(offline)
            info = {"categories": {}, "target": TARGET}
        else:
            table = read_table(_file(present(self.path)))
            if TARGET not in table.names:
                raise DataError(f"{table.path}: no column {TARGET!r}; for another table use {{use: csv}}")
            layout = Layout(TARGET, "regression", tuple(n for n in ("ocean_proximity",) if n in table.names))
            columns = make_columns({"train": table}, layout)
            whole, features = columns.splits["train"], columns.features
            info = {"categories": columns.categories, "target": TARGET}
        train, test = hold_out(whole, 0.2, "test")
        return assemble(self, {"train": train, "test": test}, features=features, info=info)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("housing.csv*"))
    if not found:
        raise DataError(f"data.path={path}: no housing.csv there; give data.path={WANTED}")
    return found[0]


def _fetch(offline: bool) -> tuple[Split, tuple[str, ...]]:
    from sklearn.datasets import fetch_california_housing

    try:
        bundle = fetch_california_housing(
            data_home=str(cache_folder("california_housing")), download_if_missing=not offline
        )
    except OSError as error:
        if offline:
            raise absent("california_housing", WANTED) from None
        raise failed("california_housing", error, WANTED) from None
    matrix = np.ascontiguousarray(bundle.data, "<f8")
    values = np.asarray(bundle.target, np.float64) * 100_000.0
    keys = content_keys(row.tobytes() for row in matrix)
    return Split({"features": matrix, "value": values}, keys), tuple(bundle.feature_names)
