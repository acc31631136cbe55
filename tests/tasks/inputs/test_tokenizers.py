"""Tokenizers: the vocabulary is the same every time; local ones are read as they are."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.errors import DataError, RecipeError
from decoct.tasks.inputs.tokenizers import SPECIAL, Pretrained, WordPiece, encoded
from decoct.tasks.inputs.wordpiece import train_wordpiece
from decoct.tasks.inputs.words import refuse_glued_words


def slow_training(words: dict[str, int], size: int, least: int) -> list[str]:
    """The definition: count all pairs anew for each merge."""
    pieces = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    vocabulary = list(dict.fromkeys(sorted({piece for word in pieces.values() for piece in word})))
    while len(vocabulary) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, split in pieces.items():
            for pair in pairwise(split):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < least:
            break
        joined = best[0] + best[1].removeprefix("##")
        if joined not in vocabulary:
            vocabulary.append(joined)
        for split in pieces.values():
            i = 0
            while i < len(split) - 1:
                if (split[i], split[i + 1]) == best:
                    split[i : i + 2] = [joined]
                i += 1
    return vocabulary


WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.integers(1, 60), st.integers(1, 4))
def test_training_is_its_definition(words: dict[str, int], size: int, least: int) -> None:
    assert train_wordpiece(words, size, least) == slow_training(words, size, least)


SCRIPT = """
import hashlib
from decoct.tasks.inputs.tokenizers import WordPiece
pairs = [(x, y) for x in "bcdfgh" for y in ("at", "ug", "ill")]
texts = [f"the {a}{b} sat on a{b}{a} ceiling, {i}" for i, (a, b) in enumerate(pairs)]
text = WordPiece(size=60).resolve(texts).text
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_vocabulary_is_the_same_in_every_process() -> None:
    found = set()
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_order_of_texts_does_not_matter() -> None:
    texts = ["a good film", "a bad film", "goodness", "badly made films"]
    assert WordPiece(size=50).resolve(texts).text == WordPiece(size=50).resolve(texts[::-1]).text


def test_wordpiece_as_the_library_encodes_it() -> None:
    tokenizer = WordPiece(size=60).resolve(["Unaffable unable able table"] * 3)
    tokens = tokenizer.engine(20).encode("Unable TABLE zzz").tokens
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert "[UNK]" in tokens
    assert tokenizer.padding_id() == 0
    assert tokenizer.vocabulary_size() <= 60


def test_a_size_too_small_for_the_characters() -> None:
    with pytest.raises(RecipeError, match=r"tokenizer\.size: 8 cannot hold"):
        WordPiece(size=8).resolve(["abcdefgh"])


def test_pretrained_from_a_folder(tmp_path: Path) -> None:
    trained = WordPiece(size=40).resolve(["a good film", "a bad film"])
    (tmp_path / "tokenizer.json").write_text(trained.text, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        read = Pretrained(path=path).resolve([])
        assert read.padding == "[PAD]"
        assert read.engine(10).encode("a good film").ids == trained.engine(10).encode("a good film").ids
        assert read.resolve([]) is read
    with pytest.raises(RecipeError, match="'<pad>' is no token"):
        Pretrained(path=tmp_path, padding="<pad>").resolve([])


def test_pretrained_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json there; write one"):
        Pretrained(path=tmp_path).resolve([])
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="no JSON"):
        Pretrained(path=tmp_path).resolve([])
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is damaged: model"):
        Pretrained(path=tmp_path, padding="[PAD]").resolve([])


PANICS = {"type": "Split", "pattern": {"Regex": "(?i)("}, "behavior": "Isolated", "invert": False}


def whole(folder: Path, **changes: object) -> Pretrained:
    """A tokenizer in a folder, with parts of its JSON changed."""
    plain = json.loads(WordPiece(size=40).resolve(["a good film"]).text) | changes
    (folder / "tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")
    return Pretrained(path=folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": None},
        {"model": []},
        {"model": {"type": "WordPiece"}},
        {"model": {"type": "BPE", "vocab": {"[PAD]": -1}, "merges": []}},
        {"added_tokens": {}},
        {"added_tokens": ["[PAD]"]},
        {"padding": "x"},
        {"padding": {"pad_token": 3}},
        {"pre_tokenizer": PANICS},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(" * 500}, "behavior": "Isolated", "invert": False}},
        {"pre_tokenizer": []},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "[a"}, "content": ""}},
        {"decoder": 1, "post_processor": 2},
        {"version": "9"},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_json_of_another_shape_is_no_tokenizer(tmp_path: Path, changes: dict[str, object]) -> None:
    made = whole(tmp_path, **changes)
    if "version" in changes or "decoder" in changes:
        with pytest.raises(DataError):
            made.resolve([]).engine(16)
    else:
        with pytest.raises(DataError, match="tokenizer"):
            made.resolve([]).vocabulary_size()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "null", '{"model": ' + "1" * 5000 + "}", "", "\x00"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_of_a_tokenizer_that_are_none(tmp_path: Path, name: str, text: str) -> None:
    made = whole(tmp_path, added_tokens=[], padding=None)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        made.resolve([])


@pytest.mark.parametrize("token", [3, [], {"content": 3}, {"content": None}])
def test_a_padding_token_of_another_shape(tmp_path: Path, token: object) -> None:
    made = whole(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    with pytest.raises(DataError, match="pad_token"):
        made.resolve([])


@pytest.mark.parametrize("text", ["x", "[]", "[" * 5000, '{"pre_tokenizer": 3}'])
def test_a_tokenizer_whose_text_stands_in_a_recipe(text: str) -> None:
    made = WordPiece(text=text, padding="[PAD]")
    for ask in (lambda: made.padding_id(), lambda: refuse_glued_words(made), lambda: made.shipped(8)):
        with contextlib.suppress(DataError):
            ask()
    with pytest.raises(DataError):
        made.engine(8)


RUNS_AWAY = {"type": "Split", "pattern": {"Regex": "(?:a|aa)+$"}, "behavior": "Isolated", "invert": False}
NAMES_NONE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize("changes", [{"pre_tokenizer": RUNS_AWAY}, {"post_processor": NAMES_NONE}], ids=["cut", "end"])
def test_a_panic_of_the_library_while_it_reads_texts_is_an_error_of_the_data(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    made = whole(tmp_path, **changes)
    with pytest.raises(DataError, match="the tokenizer cannot cut these texts into tokens"):
        encoded(made.resolve([]).engine(16), ["a" * 200 + "b"])


def test_max_length_without_room() -> None:
    tokenizer = WordPiece(size=40).resolve(["a good film"])
    with pytest.raises(RecipeError, match="max_length: 2 leaves no room"):
        tokenizer.engine(2)


@pytest.mark.parametrize("lowercase", [False, True])
def test_words_are_counted_as_text_by_text(lowercase: bool) -> None:
    characters = ["\U0001f600", "##", "[SEP]"]
    characters += list("abAB .,'\t\n\r\u00a0\u00e9\u0301\u0130\u03a3\u4e2d\u200d\x1c\x85\u3000")
    draws = np.random.default_rng(0).integers(0, len(characters), (200, 30))
    texts = ["".join(characters[each] for each in row) for row in draws.tolist()] + ["", " ", "  a  a "]
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
    words = Counter(word for t in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(t)))
    pieces = [*SPECIAL, *train_wordpiece({word: count for word, count in words.items() if word not in SPECIAL}, 95)]
    made = json.loads(WordPiece(size=100, lowercase=lowercase).resolve(texts).text)
    assert made["model"]["vocab"] == {piece: at for at, piece in enumerate(pieces)}
