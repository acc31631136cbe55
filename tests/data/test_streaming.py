"""Data larger than memory: what streams has the bits, keys and orders of what is read as a whole."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.data import cells, mapped, ordering
from decoct.data import statistics as streamed
from decoct.data.base import Dataset, Split
from decoct.data.cells import Delimited
from decoct.data.csv import CSV
from decoct.data.hashing import keyed, occurrences, text_keys
from decoct.data.index import opened
from decoct.data.mapped import Growing, Rows, chosen, is_mapped, room, spans, taken
from decoct.data.ordering import argsorted, counted
from decoct.data.parquet_tables import ParquetTables
from decoct.data.sources import Batches
from decoct.data.splits import hold_out
from decoct.data.statistics import numbers_of
from decoct.data.stored_texts import StoredTexts, TextRows
from decoct.data.text_files import TextFiles
from decoct.data.tsv import TSV
from decoct.errors import DataError

RNG = np.random.default_rng(3)
ROWS = 3_000


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything counts as large."""
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "LEAST", 64)
    monkeypatch.setattr("decoct.data.stored_texts.LEAST", 64)
    for module in (mapped, ordering, streamed):
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(cells, "BLOCK_BYTES", 1 << 12)


def table() -> pa.Table:
    numbers = RNG.normal(size=ROWS).round(3)
    return pa.table(
        {
            "a": numbers,
            "b": pa.array([None if at % 9 == 0 else at % 100 for at in range(ROWS)], pa.int32()),
            "kind": pa.array(["u", "v", "w"]).take(pa.array(RNG.integers(0, 3, ROWS))),
            "code": RNG.integers(0, 5, ROWS),
            "y": np.where(numbers > 0, "yes", "no"),
        }
    )


def same(one: Dataset, other: Dataset) -> None:
    assert (one.fingerprint, one.classes, one.features) == (other.fingerprint, other.classes, other.features)
    for name, split in one.splits.items():
        assert (split.keys == other.splits[name].keys).all()


# arrays


@pytest.mark.usefixtures("few")
def test_large_arrays_are_mapped_and_stay_so() -> None:
    whole = RNG.normal(size=(ROWS, 3))
    rows, numbers = Rows(np.float64, (3,)), Growing(np.int32)
    for part in spans(ROWS):
        rows.add(whole[part])
        assert numbers.add(np.arange(part.start, part.stop)) == part.start
        assert numbers.values[-1] == part.stop - 1
    found = rows.done()
    assert is_mapped(found)
    assert is_mapped(numbers.values)
    assert (found == whole).all()
    assert (numbers.values == np.arange(ROWS)).all()
    mask, places = RNG.random(ROWS) < 0.5, RNG.permutation(ROWS)
    for own, expected in ((chosen(found, mask), whole[mask]), (taken(found, places), whole[places])):
        assert is_mapped(own)
        assert (own == expected).all()
    assert not is_mapped(taken(whole, places))


@pytest.mark.usefixtures("few")
def test_without_room_on_the_disk_they_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    rows = Rows(np.int64)
    for part in spans(ROWS):
        rows.add(np.arange(part.start, part.stop))
    assert (rows.done() == np.arange(ROWS)).all()
    assert not is_mapped(rows.done())
    assert not is_mapped(room(ROWS, np.int64))


@pytest.mark.usefixtures("few")
def test_a_disk_that_fills_up_gives_back_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    written = mapped._written
    left = iter([True] * 5)
    monkeypatch.setattr(mapped, "_written", lambda file, block: next(left, False) and written(file, block))
    rows, numbers = Rows(np.int64), Growing(np.int64)
    for part in spans(ROWS):
        rows.add(np.arange(part.start, part.stop))
    left = iter([True] * 5)
    for part in spans(ROWS):
        numbers.add(np.arange(part.start, part.stop))
    for found in (rows.done(), numbers.values):
        assert (found == np.arange(ROWS)).all()
        assert not is_mapped(found)


@pytest.mark.usefixtures("few")
def test_stored_texts_are_the_texts() -> None:
    texts = [f"\u00e9{number}" * (number % 7) + ("\ud800" if number % 11 == 0 else "") for number in range(ROWS)]
    rows = TextRows()
    for part in spans(ROWS):
        rows.add(texts[part])
    found = rows.done()
    mask, places = RNG.random(ROWS) < 0.3, RNG.permutation(ROWS)
    assert isinstance(found, StoredTexts)
    assert list(found) == texts
    assert list(found.take(places)) == [texts[at] for at in places]
    assert list(found.where(mask)) == [text for text, wanted in zip(texts, mask) if wanted]
    assert (found[-1], found[3:700:9], found[5:5]) == (texts[-1], texts[3:700:9], [])


# statistics and orders


@pytest.mark.usefixtures("few")
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, 1.0, float("nan"), 5e-324]), min_size=1, max_size=40
    ),
    st.integers(1, 60),
)
def test_statistics_have_the_bits_of_numpy(values: list[float], times: int) -> None:
    column = np.resize(np.array(values), len(values) * times) * np.resize([1.0, 0.5, 0.25], len(values) * times)
    with np.errstate(over="ignore", invalid="ignore"):
        [found] = numbers_of(np.stack([column, column], axis=1), [1])
    known = column[~np.isnan(column)]
    median = float(np.median(known)) if len(known) else 0.0
    filled = np.where(np.isnan(column), median, column)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = [median, filled.mean(), filled.std()]
        np.testing.assert_array_equal([found.median, found.mean, found.std], expected)


@pytest.mark.usefixtures("few")
def test_orders_are_those_of_one_sort() -> None:
    keys = RNG.integers(0, 2**64, ROWS, dtype=np.uint64)
    keys[::5], keys[7:40] = keys[0], keys[3]
    label = RNG.integers(0, 3, ROWS)
    assert (argsorted(lambda part: keys[part], ROWS) == np.argsort(keys, kind="stable")).all()
    assert (counted(keys, {"label": label}) == occurrences(keys, {"label": label})).all()
    batches = Batches(Split({"label": label}, keys), None, batch_size=8, seed=5)  # type: ignore[arg-type]
    hashes = keyed(5, "order", 2, keys, occurrences(keys, {"label": label}))
    assert (batches.order(2) == np.argsort(hashes, kind="stable")).all()


@pytest.mark.usefixtures("few")
def test_what_is_held_out_is_so_by_key() -> None:
    keys = RNG.integers(0, 2**64, ROWS, dtype=np.uint64)
    rows = Rows(np.uint64)
    rows.add(keys)
    for one, other in zip(hold_out(Split({}, rows.done()), 0.3, "test"), hold_out(Split({}, keys), 0.3, "test")):
        assert is_mapped(one.keys)
        assert (one.keys == other.keys).all()


# tables

CELLS = ["1", "2.5", " 3", "-1e3 ", "NA", "", "+4", "1_0", "nan"]


@pytest.mark.usefixtures("few")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CELLS), st.sampled_from(["u", "v\nw", 'x"y'])), min_size=1, max_size=30))
def test_numbers_that_pyarrow_reads_are_those_of_the_texts(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("cells") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("a", "k"), *rows])
    found = Delimited(path)
    numbers, texts = [], []
    for block in found.blocks(["a", "k"], {"a"}, ("", "NA")):
        texts += block[1].to_pylist()
        numbers += [None if each in ("", "NA", None) else float(each) for each in block[0].to_pylist()]
    expected = [None if a.strip() in ("", "NA") else float(a) for a, _ in rows]
    assert texts == [kind for _, kind in rows]
    assert list(map(repr, numbers)) == list(map(repr, expected))


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.csv.write_csv(table(), tmp_path / "t.csv")
    data = CSV(path=tmp_path / "t.csv", target="y", categorical=("kind", "code"))
    whole = data.open()
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    for module in (mapped, ordering):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(mapped, "LEAST", 64)
    monkeypatch.setattr(cells, "BLOCK_BYTES", 1 << 10)
    found = data.open()
    assert is_mapped(found.splits["train"].columns["features"])
    same(found, whole)
    same(opened(data), whole)
    same(opened(data), whole)


def test_fingerprints_stay_what_they_were(tmp_path: Path) -> None:
    """They are those of the version that read files as a whole."""
    numbers = np.arange(6000).reshape(-1, 3) / 8
    rows = [f"{a},{b},{'NA' if at % 7 == 0 else c},{'uvw'[at % 3]},{'yn'[at % 2]}" for at, (a, b, c) in
            enumerate(numbers.tolist())]  # fmt: skip
    (tmp_path / "t.csv").write_text("a,b,c,kind,y\n" + "\n".join(rows))
    (tmp_path / "t.tsv").write_text("\n".join(f"{row} \u00e4\t{at % 3}" for at, row in enumerate(rows)), "utf-8")
    table = CSV(path=tmp_path / "t.csv", target="y", categorical=("kind",)).open()
    texts = TSV(path=tmp_path / "t.tsv").open()
    assert [each.fingerprint[:16] for each in (table, texts)] == ["300b02973441301a", "eddc0e581d0ea8fd"]


def test_parquet_files_are_the_csv_of_the_same_table(tmp_path: Path) -> None:
    whole, settings_ = table(), {"target": "y", "categorical": ("kind", "code")}
    pyarrow.csv.write_csv(whole, tmp_path / "t.csv")
    (tmp_path / "parts").mkdir()
    pq.write_table(whole.slice(0, 1000), tmp_path / "parts" / "0.parquet", row_group_size=300)
    pq.write_table(whole.slice(1000).select(["y", "code", "b", "kind", "a"]), tmp_path / "parts" / "1.parquet")
    read = CSV(path=tmp_path / "t.csv", **settings_).open()
    same(ParquetTables(path=tmp_path / "parts", **settings_).open(), read)


def test_parts_of_a_table_are_splits_by_name(tmp_path: Path) -> None:
    whole = table()
    for name, part in (("train-0", whole.slice(0, 900)), ("train-1", whole.slice(900, 900)), ("test", whole[1800:])):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    data = ParquetTables(path=tmp_path, target="a", kind="regression", categorical=("kind", "y"), validation=0)
    assert {name: len(split) for name, split in data.open().splits.items()} == {"train": 1800, "test": 1200}
    pq.write_table(whole.drop_columns(["b"]), tmp_path / "train-2.parquet")
    with pytest.raises(DataError, match=r"train-2\.parquet: its columns are a, kind, code, y, and those of train-0"):
        data.open()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, float("inf"), 2.0], r"0\.parquet, row 2, column x: 'inf' is not finite"),
        (pa.array([0, 1, 2], pa.timestamp("s")), r"column x: it holds timestamp.*data\.categorical or data\.drop"),
        (["1", "two", "3"], r"0\.parquet, row 2, column x: 'two' is no number; list x under data\.categorical"),
    ],
)
def test_what_is_no_number_is_refused_by_row(column: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": column, "y": ["a", "b", "a"]}), tmp_path / "0.parquet")
    with pytest.raises(DataError, match=message):
        ParquetTables(path=tmp_path, target="y").open()


def test_damaged_parquet_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"t\.parquet: no readable Parquet file"):
        ParquetTables(path=tmp_path, target="y").open()


# texts


@pytest.mark.usefixtures("few")
def test_texts_of_every_form_are_the_same(tmp_path: Path) -> None:
    texts = [f"{number} \u00e4\U0001f600" * (number % 5 + 1) for number in range(1000)]
    labels = ["xyz"[number % 3] for number in range(1000)]
    (tmp_path / "t.tsv").write_text("\r\n".join(f"{t}\t{label}" for t, label in zip(texts, labels)), "utf-8")
    lines = (json.dumps({"text": t, "label": label}) for t, label in zip(texts, labels))
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    (tmp_path / "parts").mkdir()
    whole = pa.table({"text": texts, "label": labels})
    pq.write_table(whole.slice(0, 400), tmp_path / "parts" / "train-00000-of-00002.parquet")
    pq.write_table(whole.slice(400), tmp_path / "parts" / "train-00001-of-00002.parquet")
    read = TSV(path=tmp_path / "t.tsv").open()
    assert isinstance(read.splits["train"].columns["text"], StoredTexts)
    assert set().union(*(split.columns["text"] for split in read.splits.values())) == set(texts)
    assert np.isin(read.splits["train"].keys, text_keys(texts)).all()
    same(TextFiles(path=tmp_path / "t.jsonl").open(), read)
    same(TextFiles(path=tmp_path / "parts").open(), read)


def test_a_byte_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(("\u00e4 b\tx\n" * 100_000).encode() + b"a\xff\tx\n")
    with pytest.raises(DataError, match=r"t\.tsv: byte 700001 is not UTF-8"):
        TSV(path=tmp_path / "t.tsv").open()
