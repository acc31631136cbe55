"""Tables read with pyarrow hold what the csv module and Python's float say."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.data.tables import MISSING, Layout, make_columns, read_table
from decoct.errors import DataError

PIECES = st.lists(st.sampled_from(["a", "1", '"', '""', ",", "\n", "\r\n", " ", "é", "-2.5e3", "NA"]), max_size=14)


def by_module(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")) if row]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.csv"


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES)
def test_cells_are_those_of_the_csv_module(path: Path, pieces: list[str]) -> None:
    text = "".join(pieces)
    path.write_text(text, encoding="utf-8", newline="")
    expected = by_module(text)
    if not expected or len(set(map(len, expected))) > 1:
        with pytest.raises(DataError, match=r"empty|cells, expected"):
            read_table(path, header=False)
        return
    table = read_table(path, header=False)
    found = [list(row) for row in zip(*(table.column(name, "x") for name in table.names))]
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(allow_infinity=False).map(repr) | st.sampled_from([*MISSING, "+4", " 7 ", ".5", "5."]),
            st.sampled_from(["u", "v", "w,x", "NA"]),
            st.sampled_from(["no", "yes"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_numbers_are_those_of_python(path: Path, rows: list[tuple[str, str, str]]) -> None:
    rows = [*rows, ("1", "u", "no"), ("2", "v", "yes")]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "kind", "y"), *rows])
    found = make_columns({"train": read_table(path)}, Layout("y", "classification", ("kind",))).splits["train"]
    kinds = sorted({kind for _, kind, _ in rows} - set(MISSING))
    expected = [
        [
            math.nan if x.strip() in MISSING else float(x),
            math.nan if kind in MISSING else float(kinds.index(kind)),
        ]
        for x, kind, _ in rows
    ]
    np.testing.assert_array_equal(found.columns["features"], np.array(expected))
    assert found.columns["label"].tolist() == [int(y == "yes") for *_, y in rows]


def test_lines_are_those_of_the_file(path: Path) -> None:
    path.write_text('x,y\n\n"1\n",0\n\n2,0\noops,1\n', encoding="utf-8")
    table = read_table(path)
    assert [table.line(row) for row in range(3)] == [4, 6, 7]
    with pytest.raises(DataError, match="line 7, column x: 'oops' is no number"):
        make_columns({"train": table}, Layout("y", "classification"))
