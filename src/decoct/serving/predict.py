#!/usr/bin/env python3
"""Asks a model file about photos, sentences and rows: `python predict.py photo.jpg`, `python predict.py rows.csv`.

This file runs by itself, beside `model.onnx`, with numpy and onnxruntime; photos need Pillow, sentences tokenizers. How
the file is called and what its numbers mean stands in the file ("decoct" of its metadata) and in `manual.json`.
From Python: `from predict import open_file; open_file("model.onnx").predict("photo.jpg")`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import math
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TABLES = (".csv", ".tsv")
BATCH = 64
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged files."""
MOST_PIXELS = 100_000_000
KNOWN = 1
"""The version of manuals that is understood."""


class Refused(ValueError):
    """What was given cannot be answered; the text says why, and what to give."""


class Asked:
    """A model that answers: `manual` says how it is called, `run` takes arrays by name and gives arrays by name.

    `tokenizer` is the text of tokenizer.json, of models that read texts.
    """

    def __init__(
        self,
        manual: Mapping[str, Any],
        run: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]],
        tokenizer: str | None = None,
    ) -> None:
        refuse_other_manual(manual)
        self.manual, self.kind = manual, str(manual["kind"])
        self._run, self._tokenizer = run, tokenizer
        self._engine: Any = None

    def predict(self, asked: Any, *, top: int = 5) -> Any:
        """The answer to one photo, sentence or row; a list of answers to a list.

        A photo is a path, bytes, a Pillow image or an array `[H, W]`, `[H, W, C]` of uint8; a row a mapping of column
        to value or a sequence of values in their order; a DataFrame is a list of rows, a path to a CSV file too. `top`:
        how many classes are named with their probability.
        """
        several = _several(asked, self.kind, self.header)
        found = [
            answer
            for part in _parts([asked] if several is None else several, BATCH)
            for answer in self._answers(part, top)
        ]
        return found[0] if several is None else found

    @property
    def header(self) -> bool:
        """Whether tables begin with the names of their columns."""
        return bool(self.manual.get("table", {}).get("header", True))

    def _answers(self, asked: Sequence[Any], top: int) -> list[dict[str, Any]]:
        feed, notes = self._feed(asked)
        arrays = {name: np.asarray(each) for name, each in self._run(feed).items()}
        found: list[dict[str, Any]] = [{} for _ in asked]
        heads = self.manual["answers"]
        for name, answer in heads.items():
            for place, said in enumerate(_said(answer, name, arrays, notes, top)):
                if len(heads) > 1:
                    found[place][name] = said
                else:
                    found[place] = said
        return found

    def _feed(self, asked: Sequence[Any]) -> tuple[dict[str, np.ndarray], list[Any]]:
        if self.kind == "image":
            pictures = [_picture(each, self.manual["image"]) for each in asked]
            pixels = np.stack([each for each, _ in pictures]).transpose(0, 3, 1, 2)
            return {"image": np.ascontiguousarray(pixels)}, [size for _, size in pictures]
        if self.kind == "tabular":
            return {"features": np.stack([_row(each, self.manual["table"]) for each in asked])}, [None] * len(asked)
        return self._texts(asked)

    def _texts(self, asked: Sequence[Any]) -> tuple[dict[str, np.ndarray], list[Any]]:
        words = self.manual["text"].get("words", False)
        for each in asked:
            if not isinstance(each, str):
                raise Refused(f"a {type(each).__name__} is no sentence; give text")
        parts = [[(m.group(), m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", each)] for each in asked]
        given = [[word for word, _, _ in each] for each in parts] if words else list(asked)
        found = self._tokenize().encode_batch(given, is_pretokenized=words)
        ids = np.array([each.ids for each in found], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.array([each.attention_mask for each in found], np.int64)}
        if "token_type_ids" in self.manual["text"]["inputs"]:
            feed["token_type_ids"] = np.array([each.type_ids for each in found], np.int64)
        other = [name for name in self.manual["text"]["inputs"] if name not in feed]
        if other:
            raise Refused(f"the model takes {', '.join(other)} beside ids, which only its own program can make")
        notes = [(text, part, each.word_ids) for text, part, each in zip(asked, parts, found)]
        return {name: feed[name] for name in self.manual["text"]["inputs"]}, notes

    def _tokenize(self) -> Any:
        if self._engine is None:
            if self._tokenizer is None:
                raise Refused("tokenizer.json is missing beside the file; copy it there")
            tokenizers = _need("tokenizers", "sentences")
            self._engine = tokenizers.Tokenizer.from_str(self._tokenizer)
        return self._engine


def refuse_other_manual(manual: Any) -> None:
    """Refuses what is no manual of this format, before anything is asked by it."""
    if not isinstance(manual, Mapping) or manual.get("format") != KNOWN:
        found = manual.get("format") if isinstance(manual, Mapping) else type(manual).__name__
        raise Refused(f"the manual has the format {found!r}; this program reads {KNOWN}: update it, or export again")
    part = {"image": "image", "text": "text", "tabular": "table"}.get(str(manual.get("kind")))
    needed = {"image": ("channels", "height", "width", "fit"), "text": ("inputs",), "table": ("columns", "missing")}
    how, answers = manual.get(part or ""), manual.get("answers")
    if part is None or not isinstance(how, Mapping) or not isinstance(answers, Mapping) or not answers:
        raise Refused("the manual does not say how the file is called; export it again with decoct")
    absent = [name for name in needed[part] if name not in how]
    for name, each in answers.items():
        kind = each.get("answer") if isinstance(each, Mapping) else None
        own = {"boxes": ("classes", "above", "overlap", "most", "width", "height"), "numbers": ()}
        absent += [f"{name}.{key}" for key in own.get(str(kind), ("classes",)) if kind is None or key not in each]
    columns = how.get("columns", ())
    if not all(isinstance(each, Mapping) and "name" in each for each in columns):
        absent.append("the names of columns")
    if absent:
        raise Refused(f"the manual lacks {', '.join(absent)}; export it again with decoct")


def open_file(path: str | os.PathLike[str], *, threads: int = 1) -> Asked:
    """The model of an ONNX file, or of a folder with `model.onnx`, that decoct exported."""
    place = Path(path)
    place = place / "model.onnx" if place.is_dir() else place
    if not place.is_file():
        raise Refused(f"{place} is missing; give the exported file, or its folder")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = _need("onnxruntime", "this file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")  # no overflow of int8 sums on older processors
    try:
        session = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "AddInitializer" not in str(error):
            raise Refused(f"{place} cannot be read: {str(error).splitlines()[0][:300]}") from None
        session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get("decoct")
    beside = place.with_name("manual.json")
    if text is None and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        raise Refused(
            f"{place} does not say how it is called (no manual in it or beside it): it was made before files said so, "
            "or elsewhere; export the model again with decoct"
        )
    names = [each.name for each in session.get_outputs()]
    tokenizer = next(
        (
            each
            for each in (place.with_name("tokenizer.json"), place.with_name(f"{place.stem}.tokenizer.json"))
            if each.is_file()
        ),
        None,
    )
    try:
        manual = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(f"{place}: its manual is no JSON; export it again with decoct") from None
    return Asked(
        manual,
        lambda feed: dict(zip(names, session.run(names, feed))),
        None if tokenizer is None else tokenizer.read_text(encoding="utf-8"),
    )


def rows_of(path: Path, header: bool = True) -> Iterator[Any]:
    """The rows of a delimited file by column, or, without a header, as lists; the first line shows the delimiter."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8; save it again as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"{path} cannot be read ({error})") from None
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(("\t", ";", "|", ","), key=first.count))
    names: list[str] | None = None
    try:
        for row in rows:
            if not row:
                continue
            if header and names is None:
                names = row
            elif names is not None and len(row) != len(names):
                raise Refused(f"{path}, line {rows.line_num}: another number of cells than the header has")
            else:
                yield row if names is None else dict(zip(names, row))
    except csv.Error as error:
        raise Refused(f"{path}, line {rows.line_num}: {error}") from None


def _several(asked: Any, kind: str, header: bool) -> list[Any] | None:
    """What is asked about one by one; None where it is one thing."""
    if kind != "tabular":
        many = isinstance(asked, list | tuple) or (isinstance(asked, np.ndarray) and asked.ndim == 4)
        return list(asked) if many else None
    if isinstance(asked, str | os.PathLike):
        return list(rows_of(Path(asked), header))
    if hasattr(asked, "to_dict") and hasattr(asked, "columns"):
        found: list[Any] = asked.to_dict("records")
        return found
    if isinstance(asked, Mapping) or hasattr(asked, "to_dict"):
        return None
    first = asked[0] if len(asked) else None
    return list(asked) if isinstance(first, Mapping | list | tuple | np.ndarray) else None


def _parts(asked: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(asked), size):
        yield asked[start : start + size]


def _need(name: str, what: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Refused(f"{what} need the package {name}: pip install {name}") from None


# --- what goes in ------------------------------------------------------------------------------------------------


def _picture(asked: Any, how: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 `[H, W, C]` as the model takes it, and the size (width, height) of the photo."""
    _need("PIL", "photos")
    from PIL import Image

    if isinstance(asked, np.ndarray):
        if asked.dtype != np.uint8 or asked.ndim not in (2, 3):
            raise Refused(f"the array is {asked.dtype} {list(asked.shape)}; give uint8 [H, W] or [H, W, C]")
        picture = Image.fromarray(asked[..., 0] if asked.shape[2:] == (1,) else asked)
    elif isinstance(asked, Image.Image):
        picture = asked
    else:
        picture = _opened(asked)
    size, channels = picture.size, int(how["channels"])
    picture = _fitted(_in_bytes(picture, how), int(how["width"]), int(how["height"]), str(how["fit"]))
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.uint8)
    return pixels.reshape(int(how["height"]), int(how["width"]), channels), size


def _opened(asked: Any) -> Any:
    from PIL import Image, ImageOps

    if not isinstance(asked, bytes | str | os.PathLike):
        raise Refused(f"a {type(asked).__name__} is no photo; give a path, bytes, an image of Pillow or an array")
    where = "the photo" if isinstance(asked, bytes) else str(asked)
    try:
        try:
            opened = Image.open(io.BytesIO(asked) if isinstance(asked, bytes) else asked, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise Refused(f"{where}: too many pixels for one picture ({error})") from None
        if math.prod(opened.size) > MOST_PIXELS:
            raise Refused(f"{where}: {opened.size[0]}x{opened.size[1]} are too many pixels for one picture")
        opened.load()
        turned = ImageOps.exif_transpose(opened)
    except UNREADABLE as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{where}: no readable image ({error})") from None
    if turned is not opened:
        turned.format = opened.format
    return turned


def _in_bytes(picture: Any, how: Mapping[str, Any]) -> Any:
    """Grey or colour of 8 bits; transparency on white; 16 bits scaled by 65535, or from the range that training had."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        numbers, tags = np.asarray(picture), getattr(picture, "tag_v2", None)
        plain = (picture.format in ("PNG", "PPM") and picture.mode != "F") or (
            tags is None and picture.mode[:4] == "I;16"
        )
        if not plain:
            raise Refused("its pixels are floats, or numbers of a TIFF: save it as PNG of 8 or 16 bits")
        black, white = how.get("value_range") or (0.0, 65535.0)
        share = np.clip((numbers.astype(np.float64) - black) / (white - black), 0, 1)
        clear = picture.info.get("transparency")
        picture = Image.fromarray(np.rint(255 * share).astype(np.uint8))
        if isinstance(clear, int):
            alpha = Image.fromarray(np.where(numbers == clear, 0, 255).astype(np.uint8))
            picture = Image.merge("LA", [picture, alpha])
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return picture.convert("L" if how["channels"] == 1 else "RGB")


def _fitted(picture: Any, width: int, height: int, fit: str) -> Any:
    """The picture brought to a size: its middle of that shape ("crop"), or all of it ("stretch")."""
    from PIL import Image

    if picture.size == (width, height):
        return picture
    box = None
    if fit == "crop":
        scale = min(picture.size[0] / width, picture.size[1] / height)
        left, top = (picture.size[0] - scale * width) / 2, (picture.size[1] - scale * height) / 2
        box = (left, top, left + scale * width, top + scale * height)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _row(asked: Any, table: Mapping[str, Any]) -> np.ndarray:
    """float32 `[F]`: numbers as they are, categories as their numbers, NaN where a value is missing."""
    columns = table["columns"]
    names = [column["name"] for column in columns]
    if hasattr(asked, "to_dict"):  # a row of pandas
        asked = asked.to_dict()
    if isinstance(asked, Mapping):
        given = {str(name).strip(): value for name, value in asked.items()}
        absent = [name for name in names if name not in given]
        if absent:
            raise Refused(f"the row has no {', '.join(absent)}; the model takes {', '.join(names)}")
        values = [given[name] for name in names]
    else:
        values = list(asked)
        if len(values) != len(names):
            raise Refused(f"the row has {len(values)} values; the model takes {len(names)}: {', '.join(names)}")
    missing = set(table["missing"])
    return np.array([_cell(value, column, missing) for value, column in zip(values, columns)], np.float32)


def _cell(value: Any, column: Mapping[str, Any], missing: set[str]) -> float:
    text = value.strip() if isinstance(value, str) else value
    if text is None or (isinstance(text, str) and text in missing) or (isinstance(text, float) and math.isnan(text)):
        return math.nan
    codes = column.get("categories")
    if codes is not None:
        return _code(text, codes)
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise Refused(f"column {column['name']}: {value!r} is no number")
    return number


def _code(value: Any, codes: Mapping[str, float]) -> float:
    """The number of a category; NaN for one that training did not have. Categories of numbers are told by value."""
    if str(value) in codes:
        return float(codes[str(value)])
    try:
        number = float(value)
        return next((float(code) for name, code in codes.items() if float(name) == number), math.nan)
    except (TypeError, ValueError, OverflowError):
        return math.nan


# --- what comes out ----------------------------------------------------------------------------------------------


def _said(
    answer: Mapping[str, Any], name: str, arrays: Mapping[str, np.ndarray], notes: Sequence[Any], top: int
) -> Iterable[dict[str, Any]]:
    """The answers of one head to each of what was asked."""
    kind = answer["answer"]
    if kind == "boxes":
        pairs = zip(arrays["boxes"], arrays["scores"], notes)
        return [_boxes(answer, boxes, logits, size) for boxes, logits, size in pairs]
    values = arrays[answer.get("output", name)]
    if kind == "classes":
        return [_classes(row, answer["classes"], top) for row in values]
    if kind == "numbers":
        return [_numbers(row, answer) for row in values]
    if kind == "tags":
        return [_tags(row, answer["classes"], *note) for row, note in zip(values, notes)]
    if kind == "maps":
        return [_map(each, answer["classes"]) for each in values]
    raise Refused(f"answers of kind {kind} cannot be asked for one by one")


def _softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    logits = logits.astype(np.float64)
    grown = np.exp(logits - logits.max(axis, keepdims=True))
    return grown / grown.sum(axis, keepdims=True)


def _classes(logits: np.ndarray, names: Sequence[str], top: int) -> dict[str, Any]:
    likely = _softmax(logits)
    best = np.argsort(-likely, kind="stable")[: max(1, top)]
    return {
        "class": names[best[0]],
        "probability": float(likely[best[0]]),
        "probabilities": {names[i]: float(likely[i]) for i in best},
    }


def _numbers(values: np.ndarray, answer: Mapping[str, Any]) -> dict[str, Any]:
    found = [float(each) for each in np.atleast_1d(values)]
    names = answer.get("names") or ["value"]
    return dict(zip(names, found)) if len(names) == len(found) else {"values": found}


def _tags(
    logits: np.ndarray, names: Sequence[str], text: str, words: Sequence[tuple[str, int, int]], places: Sequence[Any]
) -> dict[str, Any]:
    """Entities: what runs from a B- (or a first I-) tag to the last I- of its type."""
    likely, first = _softmax(logits), dict[int, int]()
    for piece, word in enumerate(places):
        if word is not None:
            first.setdefault(word, piece)
    found: list[dict[str, Any]] = []
    before = "O"
    for word, (_, start, end) in enumerate(words):
        place = first.get(word)
        tag = "O" if place is None else names[int(likely[place].argmax())]
        if tag != "O":
            share = float(likely[place].max())
            if tag.startswith("I-") and before[2:] == tag[2:]:
                found[-1] |= {"end": end, "text": text[found[-1]["start"] : end]}
                found[-1]["probability"] = min(found[-1]["probability"], share)
            else:
                found.append(
                    {"entity": tag[2:], "text": text[start:end], "start": start, "end": end, "probability": share}
                )
        before = tag
    return {"entities": found}


def _map(logits: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The class of each pixel of what the model reads, and the share of each class that is there."""
    classes = logits.argmax(0) if logits.shape[0] == len(names) else logits.argmax(-1)
    counts = np.bincount(classes.ravel(), minlength=len(names))
    shares = {names[i]: float(counts[i] / classes.size) for i in np.argsort(-counts, kind="stable") if counts[i]}
    return {"shares": shares, "map": classes.astype(np.int64)}


def _boxes(answer: Mapping[str, Any], boxes: np.ndarray, logits: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Boxes in pixels of the photo, the best first: those above `above` that no better one of their class overlaps."""
    likely = 1 / (1 + np.exp(-logits.astype(np.float64)))
    place, label = np.nonzero(likely > answer["above"])
    score, own = likely[place, label], boxes[place].astype(np.float64)
    kept: list[int] = []
    for one in np.argsort(-score, kind="stable"):
        if len(kept) == answer["most"]:
            break
        same = [k for k in kept if label[k] == label[one]]
        if not same or _overlap(own[one], own[same]).max() <= answer["overlap"]:
            kept.append(int(one))
    scale = np.array([size[0] / answer["width"], size[1] / answer["height"]] * 2)
    names = answer["classes"]
    return {
        "boxes": [
            {"class": names[label[k]], "probability": float(score[k]), "box": (own[k] * scale).round(1).tolist()}
            for k in kept
        ]
    }


def _overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with others, xyxy."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(1)
    union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    return common / np.maximum(union, 1e-12)


# --- the command -------------------------------------------------------------------------------------------------


def asked_for(words: Sequence[str], kind: str, header: bool = True) -> list[tuple[str, Any]]:
    """What the words of a command line ask about, with a name each: photos of a folder, rows of a table, texts."""
    found: list[tuple[str, Any]] = []
    for word in words:
        path = Path(word)
        if kind == "tabular":
            if not path.is_file():
                raise Refused(f"{word} is no file; give a table with a header ({', '.join(TABLES)})")
            found += [(f"{path.name}:{number}", row) for number, row in enumerate(rows_of(path, header), 1 + header)]
        elif kind == "image":
            if path.is_dir():
                inside = sorted(
                    p for p in path.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith(".")
                )
                found += [(str(each.relative_to(path)), each) for each in inside]
            else:
                found.append((word, path))
        elif path.suffix.lower() == ".txt" and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise Refused(f"{path} is not UTF-8; save it again as UTF-8") from None
            found += [(f"{path.name}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
        else:
            found.append((word, word))
    if not found:
        raise Refused(f"nothing to answer in {', '.join(words)}")
    return found


def plain(value: Any) -> Any:
    """The same as JSON knows it; maps of classes as lists of rows."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def line(said: Mapping[str, Any]) -> str:
    """An answer in one line."""
    if all(isinstance(each, float) for each in said.values()):  # numbers, whatever they are called
        return ", ".join(f"{name} {_short(value)}" for name, value in said.items())
    if "class" in said:
        rest = [(name, share) for name, share in said["probabilities"].items() if name != said["class"]]
        others = ", ".join(f"{name} {share:.1%}" for name, share in rest[:2])
        return f"{said['class']} {said['probability']:.1%}" + (f" ({others})" if others else "")
    if "entities" in said:
        found = ", ".join(f"{each['text']} ({each['entity']} {each['probability']:.0%})" for each in said["entities"])
        return found or "no entity"
    if "boxes" in said:
        found = "; ".join(
            f"{each['class']} {each['probability']:.0%} at {', '.join(f'{x:g}' for x in each['box'])}"
            for each in said["boxes"]
        )
        return found or "nothing found"
    if "shares" in said:
        return ", ".join(f"{name} {share:.1%}" for name, share in said["shares"].items())
    parts = []
    for name, value in said.items():
        parts.append(f"{name} {line(value) if isinstance(value, Mapping) else _short(value)}")
    return ", ".join(parts)


def printed(text: str) -> str:
    """Text for a terminal: control characters and what no encoding holds are written out."""
    safe = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return safe.encode("utf-8", "backslashreplace").decode("utf-8")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str] | None = None) -> int:
    """The command; the exit code is 0, or 3 where something cannot be answered."""
    parser = argparse.ArgumentParser(description="Asks a model about photos, sentences or rows of a table.")
    parser.add_argument("asked", nargs="+", help="photos or their folder; sentences or a .txt; a .csv or .tsv")
    beside = Path(__file__).with_name("model.onnx")
    default = beside if beside.is_file() else Path("model.onnx")
    parser.add_argument("--model", type=Path, default=default, help="the exported file, or its folder")
    parser.add_argument("--top", type=int, default=5, help="how many classes are named")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(words)
    try:
        model = open_file(given.model)
        pairs = asked_for(given.asked, model.kind, model.header)
        for part in _parts(pairs, BATCH):
            for (name, _), said in zip(part, model.predict([each for _, each in part], top=given.top)):
                print(json.dumps({"input": name, **plain(said)}) if given.json else printed(f"{name}: {line(said)}"))
    except Refused as error:
        print(f"predict: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
