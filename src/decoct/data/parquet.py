"""Parquet files, read with pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decoct.data.files import COPIES, regular
from decoct.errors import DataError, ResourceError
from decoct.memory import require_memory

CELL_BYTES = 64
"""Of a cell as a Python object, at least."""


def read_columns(paths: Sequence[Path], names: Sequence[str]) -> list[list[Any]]:
    """Columns of one table spread over files, as Python lists; DataError names the file and the absent column."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ResourceError("Parquet files need pyarrow; pip install 'decoct[vision]'") from None
    columns: list[list[Any]] = [[] for _ in names]
    for path in paths:
        try:
            file = pyarrow.parquet.ParquetFile(regular(path))
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}")
            _fit(path, file.metadata, len(names))
            table = file.read(columns=list(names))
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: no readable Parquet file ({error})") from None
        for column, name in zip(columns, names):
            column += table.column(name).to_pylist()
    return columns


def _fit(path: Path, metadata: Any, columns: int) -> None:
    """ResourceError where what a file says of itself would not fit into memory."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    size = max(COPIES // 2 * sum(each.total_byte_size for each in groups), CELL_BYTES * metadata.num_rows * columns)
    require_memory(size, f"{path}: its {metadata.num_rows:,} rows", "take a part of the file")


def checked_labels(paths: Sequence[Path], labels: Sequence[Any], classes: int) -> np.ndarray:
    """int64 labels, each in `[0, classes)`."""
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise DataError(f"{paths[0]}: row {row} has label {label!r}; expected 0 to {classes - 1}")
    return np.asarray(labels, np.int64)
