"""Readers against hand-made files: right content, and errors that name file, place and what was expected."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoct.data.cifar10 import CIFAR10
from decoct.data.csv import CSV
from decoct.data.fashion_mnist import FashionMNIST
from decoct.data.idx import read_idx
from decoct.data.image_folder import ImageFolder
from decoct.data.sst2 import SST2
from decoct.data.tsv import TSV
from decoct.errors import DataError, RecipeError


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def fashion(folder: Path, *, packed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for part, pixels, names in (("train", images, labels), ("t10k", images[:10], labels[:10])):
        for name, values in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", names)):
            content = idx(values)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx(tmp_path: Path, packed: bool, inner: str) -> None:
    images, labels = fashion(tmp_path / inner, packed=packed)
    data = FashionMNIST(path=tmp_path, validation=0).open(offline=True)
    assert (data.splits["train"].columns["image"][..., 0] == images).all()
    assert (data.splits["train"].columns["label"] == labels).all()
    assert len(data.splits["test"]) == 10


def test_absent_and_offline_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path))
    for spec in (FashionMNIST(), CIFAR10(), SST2()):
        with pytest.raises(DataError, match=r"(?s)offline.*data\.path=") as caught:
            spec.open(offline=True)
        assert caught.value.exit_code == 3


def test_tables_absent_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from decoct.data.california_housing import CaliforniaHousing
    from decoct.data.credit_default import CreditDefault

    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path))
    for spec in (CreditDefault(), CaliforniaHousing()):
        with pytest.raises(DataError, match=r"offline.*data\.path="):
            spec.open(offline=True)


def test_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no FashionMNIST files there"):
        FashionMNIST(path=tmp_path).open()
    with pytest.raises(DataError, match="nothing is there"):
        FashionMNIST(path=tmp_path / "absent").open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with , an IDX file of 1 dimensions with 00000801"),
        (b"\0\0\x08\x03" + b"\0" * 20, "starts with 00000803"),
        (b"\0\0\x0d\x01\0\0\0\x01\0", "starts with 00000d01"),
        (b"\0\0\x08\x01\0\0", "end inside the header of 8 bytes"),
        (idx(np.arange(5, dtype=np.uint8))[:-1], r"12 bytes, its header promises 13 \(5 values\)"),
        (idx(np.arange(5, dtype=np.uint8)) + b"x", "14 bytes, its header promises 13"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "promises 4294967303"),
        (gzip.compress(idx(np.arange(5, dtype=np.uint8)), mtime=0)[:-9], "damaged gzip"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "labels-idx1-ubyte"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(file, 1)
    assert str(file) in str(caught.value)


def test_fashion_mnist_with_a_bad_label(tmp_path: Path) -> None:
    fashion(tmp_path)
    labels = (np.arange(30) % 10).astype(np.uint8)
    labels[17] = 12
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=r"label 12 of item 17 \(byte 25\); expected 0 to 9"):
        FashionMNIST(path=tmp_path).open()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels[:5]))
    with pytest.raises(DataError, match=r"30 images, .* 5 labels"):
        FashionMNIST(path=tmp_path).open()


def test_cifar_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80")
    with pytest.raises(DataError, match=r"pickle.*refused.*Parquet"):
        CIFAR10(path=tmp_path).open()


def write_parquet(path: Path, images: list[bytes], labels: list[int]) -> None:
    import pyarrow
    import pyarrow.parquet

    cells = [{"bytes": image, "path": None} for image in images]
    pyarrow.parquet.write_table(pyarrow.table({"img": cells, "label": labels}), path)


def png(value: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_cifar_parquet(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [png(i) for i in range(4)], [0, 1, 2, 9])
    data = CIFAR10(path=tmp_path, validation=0).open()
    assert data.splits["train"].columns["image"][:, 5, 5, 1].tolist() == [0, 1, 2, 3]
    write_parquet(tmp_path / "train.parquet", [png(0), b"no image"], [0, 1])
    with pytest.raises(DataError, match=r"train\.parquet, row 1: no readable image"):
        CIFAR10(path=tmp_path).open()
    write_parquet(tmp_path / "train.parquet", [png(0), png(1)], [0, 10])
    with pytest.raises(DataError, match="row 1 has label 10; expected 0 to 9"):
        CIFAR10(path=tmp_path).open()
    (tmp_path / "train.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(DataError, match="no readable Parquet"):
        CIFAR10(path=tmp_path).open()


def image_tree(root: Path, sizes: tuple[int, int]) -> None:
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            side = sizes[i % 2]
            pixels = np.full((side, side + 2, 3), 40 * label + i, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_image_folder(tmp_path: Path) -> None:
    image_tree(tmp_path / "train", (8, 8))
    image_tree(tmp_path / "val", (8, 8))
    image_tree(tmp_path / "test", (8, 8))
    data = ImageFolder(path=tmp_path).open()
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 12, "test": 12}
    assert data.splits["train"].columns["image"].shape == (12, 8, 10, 3)
    assert data.splits["train"].columns["label"].tolist() == [0] * 6 + [1] * 6


def test_image_folder_of_unlike_sizes(tmp_path: Path) -> None:
    image_tree(tmp_path, (8, 12))
    with pytest.raises(DataError, match=r"1\.png has 14x12 pixels.*give data\.size"):
        ImageFolder(path=tmp_path).open()
    data = ImageFolder(path=tmp_path, size=6, channels=1).open()
    train, test = data.splits["train"], data.splits["test"]
    assert train.columns["image"].shape[1:] == (6, 6, 1)
    assert len(train) + len(test) + len(data.splits["validation"]) == 12


def test_image_folder_with_an_unknown_class(tmp_path: Path) -> None:
    image_tree(tmp_path / "train", (8, 8))
    image_tree(tmp_path / "test", (8, 8))
    (tmp_path / "test" / "cow").mkdir()
    (tmp_path / "test" / "cow" / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match="cow: no class of the training folder"):
        ImageFolder(path=tmp_path).open()


def sst(folder: Path, train: str) -> Path:
    (folder / "train.tsv").write_text(train, encoding="utf-8")
    for name in ("dev", "test"):
        (folder / f"{name}.tsv").write_text("fine film\t1\nawful\t0\n", encoding="utf-8")
    return folder


def test_sst2_keeps_quotes_and_spaces(tmp_path: Path) -> None:
    data = SST2(path=sst(tmp_path, 'he said " no\t1\na  b\t0\r\n\n')).open()
    assert data.splits["train"].columns["text"] == ['he said " no', "a  b"]
    assert data.splits["train"].columns["label"].tolist() == [1, 0]
    assert len(data.splits["validation"]) == 2


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("good\t1\nbad\n", "line 2: 1 columns, expected at least 2"),
        ("good\t1\nbad\t2\n", "line 2: label '2'; expected 0, 1"),
        ("", "the file holds no lines"),
    ],
)
def test_damaged_sst2(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(DataError, match=f"train.tsv.*{message}"):
        SST2(path=sst(tmp_path, train)).open()


def test_sst2_not_utf8(tmp_path: Path) -> None:
    sst(tmp_path, "x\t1\n")
    (tmp_path / "train.tsv").write_bytes(b"caf\xe9\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv: byte 3 is not UTF-8"):
        SST2(path=tmp_path).open()


def test_tsv_of_one_file_is_split_by_key(tmp_path: Path) -> None:
    file = tmp_path / "all.tsv"
    file.write_text("label\ttext\n" + "".join(f"{'ab'[i % 2]}\tt{i}\n" for i in range(100)), encoding="utf-8")
    data = TSV(path=file, text=1, label=0, header=True).open()
    assert data.classes == ("a", "b")
    assert sum(len(split) for split in data.splits.values()) == 100
    assert set(data.splits) == {"train", "validation", "test"}


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


ROWS = "".join(
    f"{i},{'red' if i % 3 else 'blue'},{'' if i % 7 == 0 else i / 2},{'yes' if i % 2 else 'no'}\n" for i in range(60)
)


def test_csv(tmp_path: Path) -> None:
    file = table(tmp_path / "t.csv", "id,colour,x,y\n" + ROWS)
    data = CSV(path=file, target="y", categorical=("colour",), drop=("id",), validation=0).open()
    assert data.classes == ("no", "yes")
    assert data.features == ("colour", "x")
    assert data.info["categories"] == {"colour": {"blue": 0.0, "red": 1.0}}
    rows = np.concatenate([split.columns["features"] for split in data.splits.values()])
    assert rows.dtype == np.float64
    assert np.isnan(rows[:, 1]).sum() == 9
    assert np.isnan(rows[:, 0]).sum() == 0


def test_csv_regression_with_a_test_file_and_gzip(tmp_path: Path) -> None:
    train = tmp_path / "train.csv.gz"
    train.write_bytes(gzip.compress(b"1;2;3.5\n4;5;6.5\n7;8;9.5\n"))
    test = table(tmp_path / "test.csv", "1;1;-1\n")
    spec = CSV(path=train, test_path=test, target="2", kind="regression", header=False, delimiter=";", validation=0)
    data = spec.open()
    assert data.splits["train"].columns["value"].tolist() == [3.5, 6.5, 9.5]
    assert data.splits["test"].columns["value"].tolist() == [-1.0]
    assert data.classes == ()


def test_csv_keys_do_not_hang_on_other_rows(tmp_path: Path) -> None:
    some = CSV(path=table(tmp_path / "a.csv", "c,x,y\nm,1,0\nk,2,1\n"), target="y", categorical=("c",), validation=0)
    more = CSV(
        path=table(tmp_path / "b.csv", "c,x,y\na,1,1\nm,1,0\nk,2,1\n"), target="y", categorical=("c",), validation=0
    )

    def keys(spec: CSV) -> set[int]:
        return {int(key) for split in spec.open().splits.values() for key in split.keys}

    assert keys(some) < keys(more)


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("x,y\n1,0\noops,1\n", {}, DataError, r"line 3, column x: 'oops' is no number; list x under data\.categorical"),
        ("x,y\n1,0\ninf,1\n", {}, DataError, "line 3, column x: 'inf' is not finite"),
        ("x,y\n1,0\n1\n", {}, DataError, "line 3: 1 cells, expected 2"),
        ("x,y\n", {}, DataError, "a header and no rows"),
        ("", {}, DataError, "the file is empty"),
        ("x,x,y\n1,2,0\n", {}, DataError, "two columns are called 'x'"),
        ("x,y\n1,0\n2,0\n", {}, DataError, "1 classes; expected two or more"),
        ("x,y\n1,0\n2,\n3,1\n", {}, DataError, "line 3, column y: '' is no class"),
        ("x,y\n1,0\n2,\n", {"kind": "regression"}, DataError, "line 3, column y: the target is missing"),
        ("x,yy\n1,0\n", {}, RecipeError, r"data\.target: .* no column 'y'; did you mean yy"),
        ("x,y\n1,0\n", {"drop": ("z",)}, RecipeError, r"data\.drop: .* no column 'z'"),
        ("x,y\n1,0\n", {"drop": ("x",)}, RecipeError, "no column left"),
    ],
)
def test_damaged_csv(tmp_path: Path, text: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CSV(path=table(tmp_path / "t.csv", text), target="y", **options).open()


def test_no_reader_uses_pickle() -> None:
    import decoct.data

    for file in Path(decoct.data.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "import pickle" not in text
        assert "torch.load" not in text
        assert "allow_pickle" not in text.replace("allow_pickle=False", "")
