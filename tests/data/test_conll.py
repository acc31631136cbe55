"""The CoNLL reader: files by name, columns, sentences, tags, keys, and errors that name file and line."""

from pathlib import Path

import numpy as np
import pytest

from decoct.data.conll import CoNLL, read_sentences
from decoct.data.hashing import text_keys
from decoct.errors import DataError, RecipeError

TRAIN = "Ada\tB-person\nLovelace\tI-person\nran\tO\n\t\n\nin\tO\nUlm\tB-place\n"
OTHER = "Bob\tB-person\n\nUlm\tI-place\r\n\r\n"


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return tmp_path


def test_files_are_told_by_their_names(tmp_path: Path) -> None:
    place = folder(tmp_path, wnut17train__conll=TRAIN, emerging__dev__conll=OTHER, emerging__test__annotated=OTHER)
    (tmp_path / "README.md").write_text("not a word")
    data = CoNLL(path=place).open()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2, "validation": 2, "test": 2}
    assert data.classes == ("O", "B-person", "I-person", "B-place", "I-place")
    train = data.splits["train"]
    assert train.columns["words"] == [["Ada", "Lovelace", "ran"], ["in", "Ulm"]]
    assert [each.tolist() for each in train.columns["tags"]] == [[1, 2, 0], [0, 3]]
    assert data.splits["test"].columns["words"][1] == ["Ulm"]
    assert np.array_equal(train.keys, text_keys(["Ada\nLovelace\nran", "in\nUlm"]))


def test_conll_2003_has_four_columns_and_documents(tmp_path: Path) -> None:
    start = "-DOCSTART- -X- -X- O\n\n"
    text = f"{start}EU NNP B-NP B-ORG\nrejects  VBZ B-VP O\n\n{start}Peter NNP B-NP B-PER\n"
    place = folder(tmp_path, eng__train=text, eng__testa=text, eng__testb=text)
    data = CoNLL(path=place).open()
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.splits["train"].columns["words"] == [["EU", "rejects"], ["Peter"]]
    assert data.classes == ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")
    chunks = CoNLL(path=place, tags=2).open()
    assert chunks.classes == ("O", "B-NP", "I-NP", "B-VP", "I-VP")


def test_one_file_is_cut_by_key(tmp_path: Path) -> None:
    text = "\n\n".join(f"word{i}\tO" if i % 2 else f"Ulm{i}\tB-place" for i in range(60))
    data = CoNLL(path=folder(tmp_path, all__txt=text) / "all.txt").open()
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sum(sizes.values()) == 60
    assert set(sizes) == {"train", "validation", "test"}
    assert CoNLL(path=tmp_path / "all.txt", labels=7).open().splits["train"].labelled.sum() == 7


def test_fingerprint_holds_words_and_tags(tmp_path: Path) -> None:
    found = set()
    for number, text in enumerate((TRAIN, TRAIN.replace("ran", "sat"), TRAIN.replace("I-person", "O"))):
        (place := tmp_path / str(number)).mkdir()
        found.add(CoNLL(path=folder(place, train__txt=text, test__txt=OTHER)).open().fingerprint)
    assert len(found) == 3
    one, other = (CoNLL(path=tmp_path / each).open().splits["train"] for each in "02")
    assert set(one.keys) == set(other.keys)  # what a sample is does not hang on its tags


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ada\tB-person\nran\n", r"train\.txt:2: 1 columns in 'ran'; expected the word in column 0"),
        ("Ada\tB-person\n\tO\n", r"train\.txt:2: no word in '\\tO'"),
        ("Ada\tB-person\nran\t\n", r"train\.txt:2: no tag in 'ran\\t'"),
        ("Ada\tB-person\n\nran\tperson\n", r"train\.txt:3: tag 'person'; expected O, B-TYPE or I-TYPE"),
        ("Ada\tE-person\n", r"train\.txt:1: tag 'E-person'"),
        ("\n\n-DOCSTART- O\n", r"train\.txt: the file holds no words"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CoNLL(path=folder(tmp_path, train__txt=text, test__txt=OTHER)).open()


def test_a_type_that_training_lacks_is_named(tmp_path: Path) -> None:
    place = folder(tmp_path, train__txt=TRAIN, test__txt="a\tO\n\nb\tB-firm\n")
    with pytest.raises(
        DataError, match=r"test\.txt:3: the training file has no words of type 'firm'; it has person, pl"
    ):
        CoNLL(path=place).open()


def test_files_that_are_absent_or_alike(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.path: missing"):
        CoNLL().open()
    with pytest.raises(DataError, match="no file there has train in its name"):
        CoNLL(path=folder(tmp_path, test__txt=OTHER)).open()
    with pytest.raises(DataError, match=r"a\.train, b\.train are all named as the train split"):
        CoNLL(path=folder(tmp_path, a__train=TRAIN, b__train=TRAIN)).open()


def test_columns_from_both_ends(tmp_path: Path) -> None:
    path = folder(tmp_path, train__txt="1 Ada B-x NE\n") / "train.txt"
    assert read_sentences(path, 1, 2)[0][0][:2] == ("Ada", "B-x")
    assert read_sentences(path, -3, -2)[0][0][:2] == ("Ada", "B-x")
    with pytest.raises(DataError, match="expected the word in column 4"):
        read_sentences(path, 4, 0)


def test_wnut17(data_root: Path) -> None:
    """Sizes and entities as Derczynski et al. 2017 give them (table 3; 3,394 sentences to train on)."""
    data = CoNLL(path=data_root / "wnut17").open()
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 3394,
        "validation": 1009,
        "test": 1287,
    }
    begins = [i for i, name in enumerate(data.classes) if name.startswith("B-")]
    counts = {name: np.isin(np.concatenate(split.columns["tags"]), begins).sum() for name, split in data.splits.items()}
    assert counts["test"] == 1079
    assert sum(counts.values()) == 3890
