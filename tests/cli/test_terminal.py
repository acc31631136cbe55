"""What the command prints where no terminal is: width, escapes, versions, help, words that are no commands."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import decoct
from decoct.cli import app as cli
from decoct.cli.shell import OTHERS

COMMANDS = [str(each.name) for each in cli.app.registered_commands]
NO_TORCH = (
    "import sys; from decoct.cli.app import call; code = call(sys.argv[1:]);"
    "sys.exit(99 if 'torch' in sys.modules else code)"
)


def piped(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], capture_output=True, text=True, env={**kept, **environment}
    )


@pytest.mark.parametrize("words", [["--help"], ["run", "-h"], ["list"], ["explain", "kd"], ["doctor"]], ids=" ".join)
def test_pipes_get_80_columns_and_no_escapes(words: list[str]) -> None:
    for environment in ({}, {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, {"NO_COLOR": "1"}):
        done = piped(*words, **environment)
        if words[0] not in ("explain", "doctor"):
            assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        if words[0] == "doctor":
            return


def test_a_phone_is_narrow() -> None:
    for words in (["list", "schedules"], ["explain", "constant"], ["-h"]):
        lines = piped(*words, COLUMNS="40").stdout.splitlines()
        long = [line for line in lines if len(line) > 40]
        assert not [line for line in long if len(line.split()) > 2], long


def test_without_colour_a_terminal_gets_none() -> None:
    for environment, coloured in (({"NO_COLOR": "1"}, False), ({}, True)):
        here, there = pty.openpty()
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        with subprocess.Popen(
            [sys.executable, "-m", "decoct", "-h"], stdout=there, env={**kept, "TERM": "xterm-256color", **environment}
        ):
            os.close(there)
            said = b""
            try:
                while part := os.read(here, 65536):
                    said += part
            except OSError:
                pass
            os.close(here)
        assert bool(re.search(rb"\x1b\[[\d;]*3\d", said)) == coloured


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_h_is_help_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call([*name.split(), "-h"]) == 0
    short = capsys.readouterr().out
    assert cli.call([*name.split(), "--help"]) == 0
    assert capsys.readouterr().out == short
    assert f"decoct {name}".strip() in short


@pytest.mark.parametrize("words", [["--version"], ["run", "--version"], ["-h"], ["check", "-h"]], ids=" ".join)
def test_version_and_help_need_no_torch(words: list[str]) -> None:
    done = piped(*words)
    assert done.returncode == 0, done.stderr
    if "--version" in words:
        assert done.stdout == f"decoct {decoct.__version__}\n"
        assert piped(*words, "--json").stdout.split() == ["{", '"decoct":', f'"{decoct.__version__}"', "}"]


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == decoct.__version__


@pytest.mark.parametrize(
    ("word", "right"),
    [("trian", "run"), ("train", "run"), ("distil", "distill"), ("lst", "list"), ("quantise", "apply"), ("RUN", "run")],
)
def test_a_command_that_does_not_exist_names_the_right_one(
    word: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call([word, "x"]) == 2
    assert re.search(rf"there is no command '{word}'; did you mean {right}\b", capsys.readouterr().err)


def test_words_of_other_programs_lead_to_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(OTHERS.values()) <= {*COMMANDS, "--version"}
    assert cli.call(["qqqqqq"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in COMMANDS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said_in_words() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "decoct", "list", "tasks"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Errno" not in done.stderr
