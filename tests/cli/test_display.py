"""What a file, an answer or a name of a file quotes never reaches the terminal as it is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from decoct.cli import app as cli
from decoct.cli.display import Watcher, print_json, print_shown, table
from decoct.errors import DataError, RecipeError, printable

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202egnp.exe\u2066\r\x08\x7f\x9b31m\u200b"
UNSEEN = set(EVIL) - set("]0;owned[2J31mgnp.exe")


def shows(text: str) -> set[str]:
    return UNSEEN & set(text)


def test_no_character_that_does_something_is_left() -> None:
    """Against the database of Unicode: controls, formats (but joiners, which letters need), halves, separators."""
    every = "".join(map(chr, range(0x3000))) + "\ufeff\ufff9\U000e0041\udcff"
    left = {each for each in printable(every) if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    arabic = {each for each in left if 0x600 <= ord(each) < 0x900}
    assert left - arabic == {"\t", "\n", "\u200c", "\u200d", "\u180e"}
    assert printable("Größe 中文 🙂 𝔘") == "Größe 中文 🙂 𝔘"


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_other_texts_stay(text: str) -> None:
    assert printable(text) == text


def by_key(folder: Path) -> list[str]:
    (folder / "a.yaml").write_text("version: 1\n" + '"' + EVIL.encode("unicode_escape").decode() + '": 1\n')
    return ["check", "a.yaml"]


def by_value(folder: Path) -> list[str]:
    text = 'version: 1\ntask: {use: "EVIL"}\ndata: {use: digits}\nsteps: [{use: train, inputs: {model: "EVIL"}}]\n'
    (folder / "a.yaml").write_text(text.replace("EVIL", EVIL.encode("unicode_escape").decode()))
    return ["check", "a.yaml"]


def by_column(folder: Path) -> list[str]:
    (folder / "a.csv").write_text(f'"{EVIL}",y\n1,a\n2,b\n', newline="")
    return ["init", "--from-folder", "a.csv", "--out", "b.yaml"]


def by_label(folder: Path) -> list[str]:
    rows = f'x,"{EVIL}"\n' + "".join(f'{i},"{EVIL}{i % 3}"\n' for i in range(30))
    (folder / "a.csv").write_text(rows, newline="")
    text = "version: 1\ntask: {use: tabular_classification}\ndata: {use: csv, path: a.csv, target: y}\n"
    text += "models: {m: {use: mlp}}\nsteps: [{use: train, inputs: {model: m}}]\n"
    (folder / "a.yaml").write_text(text)
    return ["check", "a.yaml"]


def by_file(folder: Path) -> list[str]:
    return ["check", EVIL.replace("/", "") + ".yaml"]


def by_bytes(folder: Path) -> list[str]:
    return ["report", os.fsdecode(b"run\xff\x1b[2J")]


def by_word(folder: Path) -> list[str]:
    return ["run", "digits", f"steps.{EVIL}=1"]


def by_explain(folder: Path) -> list[str]:
    return ["explain", EVIL]


@pytest.mark.parametrize(
    "given_by",
    [by_key, by_value, by_column, by_label, by_file, by_bytes, by_word, by_explain],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["", "json"])
def test_errors_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given_by: Callable[[Path], list[str]],
    flags: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.call([*flags, *given_by(tmp_path)])
    said = capsys.readouterr()
    assert said.out + said.err
    assert shows(said.out + said.err) == set()


def test_tables_lines_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    print_shown([f"a {EVIL}", table([{EVIL: EVIL, "n": 1}])])
    print_json({EVIL: [EVIL]})
    for terminal in (True, False):
        shown = io.StringIO()
        with Watcher(quiet=False, console=Console(file=shown, force_terminal=terminal)) as watch:
            watch({"event": "started", "step": EVIL})
            watch({"event": "progress", "step": EVIL, "done": 1, "total": 2, "text": EVIL})
            watch({"event": "done", "step": EVIL, "wall_s": 1.0, "summary": EVIL})
        assert "\\x1b]0;owned\\x07" in shown.getvalue()
        assert "\x1b]0;" not in shown.getvalue()
        assert "\u202e" not in shown.getvalue()
    said = capsys.readouterr()
    assert shows(said.out + said.err) == set()


@pytest.mark.parametrize("kind", [DataError, RecipeError])
def test_an_error_quotes_plainly_in_python_too(kind: type[Exception]) -> None:
    assert shows(str(kind(EVIL))) == set()
    assert kind(EVIL).args == (EVIL,)


def test_warnings_and_tracebacks_of_the_command() -> None:
    code = (
        "import sys, warnings; from decoct.cli import app; "
        "app.call = lambda words: (warnings.warn(words[0]), 1 / 0 if len(words) > 1 else 0)[1]; "
        "sys.argv[1:] = EVIL; app.main()"
    )
    for words in ([EVIL], [EVIL, "fail"]):
        told = code.replace("EVIL", ascii(words))
        done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env={**os.environ})
        assert "note: \\x1b]0;owned" in done.stderr
        assert ("ZeroDivisionError" in done.stderr) == (len(words) > 1)
        assert shows(done.stderr) == set()
