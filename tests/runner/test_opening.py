"""From the index: check, plan and a skipped run read no data; tasks resolve as from the files; lies are told."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoct.data import index
from decoct.data.base import Data
from decoct.data.csv import CSV
from decoct.data.text import Text
from decoct.data.tsv import TSV
from decoct.errors import DataError
from decoct.recipe.recipe import Recipe
from decoct.runner.checking import check
from decoct.runner.execution import Options, execute, plan, prepare
from decoct.runner.opening import resolved
from decoct.runner.verify import verify_run
from decoct.tasks.inputs.tokenizers import Pretrained, WordPiece
from decoct.tasks.tabular_classification import TabularClassification
from decoct.tasks.text_classification import TextClassification


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture
def texts(tmp_path: Path) -> Data:
    draws = np.random.default_rng(0).integers(0, 300, (30_000, 9))
    lines = "\n".join(f"{' '.join(f'w{word:03}' for word in row)}\t{row[0] % 2}" for row in draws.tolist())
    (tmp_path / "train.tsv").write_text(lines)
    return TSV(path=tmp_path / "train.tsv", limit=500)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each opening of a data set, and each vocabulary that is made."""
    seen: list[str] = []
    open_one, resolve = TSV.open, WordPiece.resolve

    def counted(self: TSV, **more: Any) -> Any:
        seen.append("open")
        return open_one(self, **more)

    def trained(self: WordPiece, sentences: Any) -> Any:
        seen.append("resolve")
        return resolve(self, sentences)

    monkeypatch.setattr(TSV, "open", counted)
    monkeypatch.setattr(WordPiece, "resolve", trained)
    return seen


def recipe(data: Data) -> Recipe:
    plain = {
        "version": 1,
        "seed": 0,
        "task": {"use": "text_classification", "tokenizer": {"use": "wordpiece", "size": 400}, "max_length": 8},
        "data": data.plain(),
        "models": {"small": {"use": "bilstm", "hidden": 4, "embedding": 4}},
        "steps": [{"use": "train", "name": "alone", "inputs": {"model": "small"}, "budget": {"steps": 2}}],
    }
    return Recipe.parse(plain)


def test_check_plan_and_a_skipped_run_read_no_data(texts: Data, opens: list[str], tmp_path: Path) -> None:
    made = recipe(texts)
    check(made, offline=True)
    assert opens == ["open", "resolve"]
    opens.clear()
    check(made, offline=True)
    assert [each.skip for each in plan(made, tmp_path / "run")] == [False]
    assert opens == []
    first = execute(made, tmp_path / "run")
    again = execute(made, tmp_path / "run")
    assert [each.skip for each in plan(made, tmp_path / "run")] == [True]
    assert [each["skipped"] for each in again.results["steps"]] == [True]
    assert opens == []
    shutil.rmtree(tmp_path / "cache")
    fresh = execute(made, tmp_path / "fresh")
    assert opens == ["open", "resolve"]
    assert fresh.artifact("alone").key == first.artifact("alone").key
    assert fresh.artifact("alone").hash == first.artifact("alone").hash


def lie(data: Data, file: Path) -> None:
    """The index keeps its entry for a file that has changed."""
    entry = index._entry(data)
    assert entry is not None
    content = file.read_bytes()
    file.write_bytes(content.replace(b"w007", b"w008"))
    now = index._entry(data)
    assert now is not None
    shutil.move(entry.folder, now.folder)


def test_a_step_that_runs_finds_that_the_index_lies(texts: Data, tmp_path: Path) -> None:
    made = recipe(texts)
    check(made, offline=True)
    assert texts.path is not None
    lie(texts, texts.path)
    with pytest.raises(DataError, match=r"data: the files of .*train\.tsv are others than the index remembers"):
        execute(made, tmp_path / "run")
    found = execute(made, tmp_path / "run")
    assert found.results["data"]["fingerprint"] == texts.open(offline=True).fingerprint


def test_verify_finds_that_the_index_lies(texts: Data, tmp_path: Path) -> None:
    execute(recipe(texts), tmp_path / "run")
    assert texts.path is not None
    before = [each.artifact for each in verify_run(tmp_path / "run", offline=True)]
    lie(texts, texts.path)
    found = [each for each in verify_run(tmp_path / "run", offline=True) if each.artifact not in before]
    assert [each.artifact for each in found] == [str(texts.path)]
    assert "train.tsv holds other bytes than the index remembers" in found[0].wrong[0]


def test_a_task_from_the_index_is_the_one_that_the_data_decide(texts: Data, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 10**9, (20_000, 6)).tolist()
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,d,e,y", *(",".join(map(str, [*r[:5], r[5] % 2])) for r in rows)]))
    table = CSV(path=tmp_path / "t.csv", target="y")
    for data, task in ((texts, TextClassification()), (table, TabularClassification())):
        expected = task.resolve(data.open(offline=True))
        for _ in range(2):
            found = resolved(task, index.opened(data))
            assert found == expected
            assert found.digest() == expected.digest()
        assert resolved(expected, index.opened(data)) == expected


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"task": {"use": "nothing"}}'])
def test_a_broken_task_is_made_anew(damage: bytes, texts: Data, cache: Path) -> None:
    expected = resolved(TextClassification(), index.opened(texts))
    (kept,) = cache.rglob("*.tasks/*.json")
    kept.write_bytes(damage)
    assert resolved(TextClassification(), index.opened(texts)) == expected


def test_a_task_that_reads_a_file_is_not_kept(texts: Data, tmp_path: Path, cache: Path) -> None:
    whole = WordPiece(size=400).resolve(["a b c"])
    (tmp_path / "tokenizer.json").write_text(whole.text)
    task = TextClassification(tokenizer=Pretrained(path=tmp_path / "tokenizer.json", padding="[PAD]"))
    resolved(task, index.opened(texts))
    assert not list(cache.rglob("*.tasks/*.json"))


def test_many_texts_are_encoded_as_far_as_a_batch_asks(tmp_path: Path) -> None:
    from decoct.tasks.inputs import texts as reading

    words = [" ".join(f"w{number * place % 97}" for place in range(number % 11)) for number in range(5_000)]
    tokenizer = WordPiece(size=300).resolve(words)
    whole = reading.encode(tokenizer, 6, words)
    lazy = reading.Encodings(tokenizer, 6, words)
    for indices in (np.array([0, 7]), np.array([4_999, 3, 4_999, 1_024]), np.arange(5_000), np.array([2_500])):
        expected, real = reading.rows_of(whole, indices, 0)
        found, there = reading.rows_of(lazy.of(indices), indices, 0)
        assert (found == expected).all()
        assert (there == real).all()
    few = reading.Encodings(tokenizer, 6, words)
    few.of(np.array([1_030, 1_031]))
    assert few._left == {0, 2, 3, 4}


def test_options_that_are_sure_stand_on_no_word(texts: Data) -> None:
    made = recipe(texts)
    assert [prepare(made, Options(), sure=sure)[0].remembered for sure in (False, False, True)] == [False, True, False]


def test_texts_of_a_language_model_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(f"line {number} \u00e9" * (number % 7) for number in range(40_000)))
    data = Text(path=tmp_path / "t.txt", documents="line")
    index.opened(data)
    split = index.opened(data).splits["test"]
    assert list(split.columns["text"]) == data.open().splits["test"].columns["text"]
    assert split.columns["text"][2:4] == list(split.columns["text"])[2:4]
