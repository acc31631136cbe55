"""Plain text: documents without labels, for language models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from decoct.data.base import Data, Dataset, Split
from decoct.data.files import folder_of, is_junk, present, read_text
from decoct.data.labelled_texts import stored
from decoct.data.splits import assemble, hold_out, split_named
from decoct.errors import DataError, RecipeError

ENDINGS = (".txt", ".txt.gz", ".tokens")


class Text(Data):
    """Plain text files, one or several documents each.

    `path`: one file, or a folder of files whose names hold train, valid and test (`wiki.train.txt`), or of any text
    files, all for training. `documents` are divided by blank lines, or each line or file is one; `test` is the fraction
    of documents held out by key where there is no test file.
    """

    use: ClassVar[str] = "text"
    documents: Literal["blank_line", "line", "file"] = "blank_line"
    test: float = Field(default=0.1, gt=0, lt=1)

    def files(self) -> list[str]:
        found = {} if self.path is None else _files(present(self.path))
        return [str(each) for files in found.values() for each in files]

    def open(self, *, offline: bool = False) -> Dataset:
        if self.path is None:
            raise RecipeError("data.path: missing; give a text file, or a folder of them")
        files = _files(present(self.path))
        splits = {name: self._read(each) for name, each in files.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out(splits["train"], self.test, "test")
        return assemble(self, splits)

    def _read(self, files: list[Path]) -> Split:
        found = stored(document for file in files for document in self._documents(read_text(file)))
        if not len(found):
            raise DataError(f"{files[0]}: it holds no text")
        return found

    def _documents(self, text: str) -> list[str]:
        text = text.replace("\r\n", "\n")
        if self.documents == "file":
            parts = [text]
        else:
            parts = re.split(r"\n[ \t]*\n\s*" if self.documents == "blank_line" else r"\n", text)
        return [part.strip("\n") for part in parts if part.strip()]


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    every = sorted(
        each
        for each in folder_of(path).iterdir()
        if each.name.lower().endswith(ENDINGS) and each.is_file() and not is_junk(each.name)
    )
    if not every:
        raise DataError(f"data.path={path}: no text files there ({', '.join(ENDINGS)})")
    found: dict[str, list[Path]] = {}
    for file in every:
        found.setdefault(split_named(file.name) or "", []).append(file)
    if "" in found and len(found) > 1:
        raise DataError(
            f"data.path={path}: some files name a split and {found[''][0].name} does not; put train, valid or "
            "test into each name"
        )
    found = {name or "train": files for name, files in found.items()}
    if "train" not in found:
        raise DataError(f"data.path={path}: no file for training (train in its name)")
    return found
