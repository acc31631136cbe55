"""Parquet files, read with pyarrow."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.data.cells import BLOCK_ROWS, Cells
from decoct.data.files import COPIES, regular
from decoct.errors import DataError, ResourceError
from decoct.memory import require_memory

if TYPE_CHECKING:
    import pyarrow

CELL_BYTES = 64
"""Of a cell as a Python object, at least."""
BUFFER = 1 << 16
"""Bytes of a column read ahead."""


class ParquetCells(Cells):
    """One table spread over Parquet files, in their order; DataError where one of them has other columns."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.path = list(paths), paths[0]
        self._rows: list[int] = []
        for path in self.paths:
            with _opened(path) as file:
                names = tuple(file.schema_arrow.names)
                self._rows.append(file.metadata.num_rows)
            if path == self.path:
                self.names = names
            elif set(names) != set(self.names):
                raise DataError(
                    f"{path}: its columns are {', '.join(names)}, and those of {self.path.name} "
                    f"{', '.join(self.names)}; they are parts of one table and need the same"
                )
        if len(set(self.names)) < len(self.names):
            raise DataError(f"{self.path}: two columns have one name ({', '.join(self.names)})")
        if not sum(self._rows):
            raise DataError(f"{self.path}: it has no rows")

    def blocks(
        self, names: Sequence[str], numbers: Collection[str] = (), missing: Sequence[str] = ()
    ) -> Iterator[list[pyarrow.Array]]:
        for path in self.paths:
            with _opened(path) as file:
                for block in file.iter_batches(BLOCK_ROWS, columns=list(names), use_threads=False):
                    if len(block):
                        yield [block.column(name) for name in names]

    def where(self, row: int) -> str:
        for path, rows in zip(self.paths, self._rows):
            if row < rows:
                return f"{path}, row {row + 1}"
            row -= rows
        raise IndexError(row)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file of which a part at a time is in memory."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ResourceError("Parquet files need pyarrow; pip install 'decoct[vision]'") from None
    try:
        with pyarrow.parquet.ParquetFile(regular(path), buffer_size=BUFFER, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: no readable Parquet file ({error})") from None


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
