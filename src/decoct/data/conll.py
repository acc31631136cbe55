"""Words with tags in columns, one word a line: the CoNLL format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import folder_of, is_junk, present, read_text
from decoct.data.hashing import text_keys
from decoct.data.splits import assemble, hold_out
from decoct.errors import DataError, RecipeError

NAMES = {"train": "train", "validation": "dev|val|testa", "test": "test"}
"""What the name of a split's file holds; the first that fits counts."""
OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"
_TAG = re.compile(r"[BI]-(.+)")


class Line(NamedTuple):
    """One word with its tag, and where it stands."""

    word: str
    tag: str
    number: int


class CoNLL(Data):
    """Sentences of tagged words: a word a line, its columns apart by tabs or spaces, a blank line after each sentence.

    `path`: one file, or a folder with a file whose name holds `train`, one with `test` and perhaps one with `dev`,
    `val` or `testa`. `words` and `tags` are column numbers from 0, or from -1 backwards; `test` is the fraction held
    out by key where there is no test file. Lines that begin with -DOCSTART- are left out. Tags are O, B-TYPE and
    I-TYPE; classes are those of the types of the training file, O first. Tjong Kim Sang & De Meulder 2003.
    """

    use: ClassVar[str] = "conll"
    words: int = 0
    tags: int = -1
    test: float = Field(default=0.2, gt=0, lt=1)

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give the folder of the files for train, dev and test, or one file")
        files = files_of(present(self.path))
        read = {name: read_sentences(file, self.words, self.tags) for name, file in files.items()}
        classes = tag_names(read["train"], files["train"])
        splits = {name: tagged_split(files[name], each, classes) for name, each in read.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        return assemble(self, splits, classes=classes)


def files_of(path: Path) -> dict[str, Path]:
    """The files of the splits in a folder, by what their names hold, or one file as the training split."""
    if path.is_file():
        return {"train": path}
    found: dict[str, list[Path]] = {}
    for file in sorted(folder_of(path).iterdir()):
        fits = [name for name, pattern in NAMES.items() if re.search(pattern, file.name.lower())]
        if file.is_file() and not is_junk(file.name) and fits:
            found.setdefault(fits[0], []).append(file)
    for name, files in found.items():
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise DataError(f"data.path={path}: {listed} are all named as the {name} split; leave one of them there")
    if "train" not in found:
        raise DataError(f"data.path={path}: no file there has train in its name")
    return {name: found[name][0] for name in NAMES if name in found}


def read_sentences(path: Path, words: int = 0, tags: int = -1) -> list[list[Line]]:
    """The sentences of a file; DataError names the line that has too few columns, or an empty word or tag."""
    sentences: list[list[Line]] = [[]]
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        text = text.removesuffix("\r")
        if not text.strip(" \t"):
            sentences.append([])
        elif not text.startswith(DOCUMENT):
            sentences[-1].append(_line(path, number, text, words, tags))
    found = [each for each in sentences if each]
    if not found:
        raise DataError(f"{path}: the file holds no words")
    return found


def _line(path: Path, number: int, text: str, words: int, tags: int) -> Line:
    cells = text.split("\t") if "\t" in text else re.split(" +", text.strip(" "))
    places = [at if at >= 0 else len(cells) + at for at in (words, tags)]
    if not all(0 <= at < len(cells) for at in places) or places[0] == places[1]:
        raise DataError(
            f"{path}:{number}: {len(cells)} columns in {text!r}; expected the word in column {words} and its tag in "
            f"another, {tags}"
        )
    word, tag = (cells[at].strip() for at in places)
    if not word or not tag:
        raise DataError(f"{path}:{number}: no {'tag' if word else 'word'} in {text!r}")
    return Line(word, tag, number)


def tag_names(sentences: Sequence[Sequence[Line]], path: Path) -> tuple[str, ...]:
    """O, then B-TYPE and I-TYPE of each type in order; DataError names the line of another tag.

    >>> tag_names([[Line("Ada", "B-person", 1), Line("ran", "O", 2)]], Path("train.conll"))
    ('O', 'B-person', 'I-person')
    """
    types = set()
    for each in (line for sentence in sentences for line in sentence):
        if each.tag != OUTSIDE:
            types.add(_type_of(each, path))
    return (OUTSIDE, *(f"{prefix}-{name}" for name in sorted(types) for prefix in "BI"))


def _type_of(line: Line, path: Path) -> str:
    found = _TAG.fullmatch(line.tag)
    if found is None:
        raise DataError(f"{path}:{line.number}: tag {line.tag!r}; expected O, B-TYPE or I-TYPE (BIO)")
    return found[1]


def tagged_split(path: Path, sentences: Sequence[Sequence[Line]], classes: Sequence[str]) -> Split:
    """A split of sentences: `words`, a list of lists, and `tags`, int64 `[words]` of each; keys from the words alone.

    DataError names the line of a tag of a type that the training file has not.
    """
    codes: Mapping[str, int] = {name: i for i, name in enumerate(classes)}
    for each in (line for sentence in sentences for line in sentence):
        if each.tag not in codes:
            raise DataError(
                f"{path}:{each.number}: the training file has no words of type {_type_of(each, path)!r}; it has "
                f"{', '.join(name[2:] for name in classes if name.startswith('B-')) or 'none'}"
            )
    words = [[line.word for line in sentence] for sentence in sentences]
    tags = [np.array([codes[line.tag] for line in sentence], np.int64) for sentence in sentences]
    return Split({"words": words, "tags": tags}, word_keys(words))


def word_keys(sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """Keys of sentences, from their words."""
    return text_keys(["\n".join(words) for words in sentences])
