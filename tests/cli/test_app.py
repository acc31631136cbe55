"""The command: words to calls, exit codes, JSON, what it imports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decoct.cli import app as cli
from decoct.errors import DataError

LIGHT = (
    ["--help"],
    ["run", "-h"],
    ["--version"],
    ["list"],
    ["list", "tasks", "--json"],
    ["init", "--out", "a.yaml"],
    ["nonsense"],
)

TINY = """\
version: 1
seed: 0
task: {use: image_classification}
data: {use: digits, limit: 40}
models:
  large: {use: mlp, hidden: [16]}
  small: {use: mlp, hidden: [4]}
steps:
  - {use: train, name: teacher, inputs: {model: large}, budget: {steps: 3}, batch_size: 16}
  - use: distill
    name: student
    inputs: {model: small, teacher: teacher}
    budget: {steps: 3}
    batch_size: 16
    objective:
      - {use: kd, weight: 0.9, temperature: 4.0}
      - {use: cross_entropy, weight: 0.1}
  - {use: export, name: student_onnx}
  - {use: benchmark, name: benchmark, inputs: {student: student_onnx}}
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from decoct.cli.app import call; code = call(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'sklearn', 'onnxruntime', 'pandas', 'timm'} & set(sys.modules);"
        "sys.exit(99 if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == (2 if words == ["nonsense"] else 0), done.stderr


def test_every_command_of_the_interface_is_there_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        "demo",
        "init",
        "check",
        "plan",
        "run",
        "apply",
        "distill",
        "predict",
        "show",
        "label",
        "teach",
        "list",
        "explain",
        "report",
        "verify",
        "doctor",
        "schema",
    ]
    for name in names:
        assert cli.call([name, "--help"]) == 0
        assert f"decoct {name}" in capsys.readouterr().out
    assert {command.name for command in cli.app.registered_commands} == set(names)


def test_global_options_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for words in (["--json", "list", "tasks"], ["list", "--json", "tasks"], ["list", "tasks", "--json"]):
        assert cli.call(words) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    assert "image_classification" in answers[0]["tasks"]
    assert cli.call(["list", "tasks", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["lst"], 2, "did you mean list?"),
        (["run"], 2, "RECIPE"),
        (["run", "digits", "--sed", "3"], 2, "--seeds"),
        (["list", "objectivs"], 2, "did you mean objectives?"),
        (["show", "digitz"], 2, "did you mean digits?"),
        (["show", "absent.yaml"], 2, "absent.yaml"),
        (["explain", "kdd"], 2, "kd"),
        (["explain", "kd.temprature"], 2, "did you mean temperature?"),
        (["init", "--task", "regresion"], 2, "did you mean regression"),
        (["init", "--from-folder", "absent"], 3, "nothing is there"),
        (["verify", "absent"], 3, "no such folder"),
        (["report", "absent"], 3, "absent"),
    ],
)
def test_errors_have_codes_texts_and_json(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(words) == code
    printed = capsys.readouterr()
    assert text in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert cli.call([*words, "--json"]) == code
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert error["exit_code"] == code
    assert text in error["message"]


def test_a_wrong_key_is_named_with_its_place(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_text(TINY.replace("temperature: 4.0", "temprature: 4.0").replace("seed: 0", "seed: x"))
    assert cli.call(["check", "tiny.yaml", "--json"]) == 2
    printed = capsys.readouterr()
    wanted = "tiny.yaml:16:32: steps[1].objective[0].temprature: unknown; did you mean temperature?"
    assert printed.err.splitlines()[0] == wanted
    problems = json.loads(printed.out)["error"]["problems"]
    assert problems[0]["path"] == "steps[1].objective[0].temprature"
    assert problems[0]["place"] == "tiny.yaml:16:32"
    assert problems[1]["path"] == "seed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_that_the_same_command_continues(tiny: Path, number: signal.Signals, code: int) -> None:
    words = [sys.executable, "-m", "decoct.cli.app", "run", "tiny.yaml", "--out", "run", "--json"]
    running = subprocess.Popen([*words, "steps.teacher.budget={seconds: 300}"], stdout=-1, stderr=-1, text=True)
    while running.poll() is None and not list(Path("run").glob(".01-teacher.work/*/*")):
        time.sleep(0.1)
    running.send_signal(number)
    printed, complaint = running.communicate()
    assert running.returncode == code, complaint
    assert "the same command continues" in complaint
    assert "Traceback" not in complaint
    assert json.loads(printed)["error"]["exit_code"] == code


def test_a_folder_that_cannot_be_written_is_a_matter_of_resources(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert cli.call(["init", "--out", "file/recipe.yaml"]) == 4
    assert "file" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    line = f"{sys.executable} -m decoct.cli.app schema | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == ""
    assert len(done.stdout) == 10


def test_from_check_to_verify(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*words: str, code: int = 0) -> dict:
        assert cli.call([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    assert ask("check", "tiny.yaml")["steps"] == ["teacher", "student", "student_onnx", "benchmark"]
    assert [each["will"] for each in ask("plan", "tiny.yaml", "--out", "run")["steps"]] == ["run"] * 4
    assert not Path("run/01-teacher").exists()
    first = ask("run", "tiny.yaml", "--out", "run")
    assert Path(first["page"]).is_file()
    assert [each["skipped"] for each in first["results"]["steps"]] == [False] * 4
    assert [each["will"] for each in ask("plan", "tiny.yaml", "--out", "run")["steps"]] == ["skip"] * 4
    again = ask("run", "tiny.yaml", "--out", "run", "steps.student.objective.kd.temperature=2")
    assert [each["skipped"] for each in again["results"]["steps"]] == [True, False, False, False]
    assert ask("report", "run", "--out", "page.html") == {"page": "page.html"}
    assert all(not each["wrong"] for each in ask("verify", "run")["artifacts"])
    applied = ask("apply", "export", "run/01-teacher", "--out", "big")
    assert applied["kind"] == "exported"
    assert all(not each["wrong"] for each in ask("verify", "big")["artifacts"])
    weights = Path("run/02-student/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors is damaged" in ask("verify", "run", code=6)["error"]["message"]


def test_people_read_a_table_and_where_the_page_is(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["run", "tiny.yaml", "--out", "run"]) == 0
    printed = capsys.readouterr()
    assert "Page: run/report.html" in printed.out
    assert "Accuracy" in printed.out
    assert "teacher: " in printed.err


def test_a_second_process_is_told_who_holds_the_folder(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from decoct.runner.folders import lock

    with lock(Path("run")):
        assert cli.call(["run", "tiny.yaml", "--out", "run"]) == 4
    assert "held by process" in capsys.readouterr().err


def test_yaml_and_python_forms_agree(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from decoct.recipe.recipe import Recipe

    recipe = Recipe.load(tiny)
    assert cli.call(["show", "tiny.yaml"]) == 0
    Path("again.yaml").write_text(capsys.readouterr().out)
    assert Recipe.load("again.yaml") == recipe
    assert cli.call(["show", "tiny.yaml", "--python"]) == 0
    names: dict = {}
    exec(capsys.readouterr().out, names)
    assert names["recipe"] == recipe


def test_doctor_finds_this_environment_good(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "cache"))
    assert cli.call(["doctor", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["cache folder"]["found"] == str(tmp_path / "cache")
    (tmp_path / "cache" / "index").mkdir()
    (tmp_path / "cache" / "index" / "entry").write_bytes(bytes(2500))
    assert cli.call(["doctor", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["index of data sets"]["found"] == f"{tmp_path / 'cache' / 'index'}: 2.5 kB"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "file"))
    assert cli.call(["doctor", "--json"]) == 4
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert not found["cache folder"]["good"]
    assert "DECOCT_CACHE" in found["cache folder"]["fix"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["run", "tiny.yaml", "--out", "file"], 2, "out is file, and file is a file; give a folder"),
        (["run", "tiny.yaml", "--out", "file/deeper"], 2, "out is file/deeper, and file is a file; give a folder"),
        (["plan", "tiny.yaml", "--out", "file"], 2, "out is file, and file is a file"),
        (["init", "--out", "folder", "--force"], 4, "folder: a folder is there, where a file is needed"),
        (["init", "--out", "file/recipe.yaml"], 4, "file: a file is there, where a folder is needed"),
        (["run", "tiny.yaml", "seed=1000000000000000000000000"], 2, "allowed: 0 to 9223372036854775807"),
        (
            ["run", "tiny.yaml", "steps.teacher.batch_size='7'"],
            2,
            "steps[0].batch_size: Input should be a valid integer",
        ),
    ],
)
def test_what_the_system_refuses_is_said_in_words(
    tiny: Path, words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    assert cli.call(words) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "Errno" not in printed
    assert "Traceback" not in printed


def test_no_error_shows_numbers_of_the_system() -> None:
    reason = OSError(2, "No such file or directory", "x")
    assert str(DataError(f"x: cannot be read ({reason})")) == "x: cannot be read (No such file or directory: 'x')"


def test_warnings_are_notes_of_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_text(TINY.replace("limit: 40}", "limit: 40, validation: 0.0}"))
    assert (
        cli.call(["run", "tiny.yaml", "steps=[{use: train, name: a, inputs: {model: small}, budget: {steps: 2}}]"]) == 0
    )
    printed = capsys.readouterr().err.splitlines()
    notes = [line for line in printed if "validation split" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: a: select is best and the data have no validation split")
    assert not any("Warning" in line or ".py:" in line for line in printed)
    assert cli.call(["run", "tiny.yaml", "--quiet", "--out", "b", "steps.teacher.budget.steps=2"]) == 0
    assert capsys.readouterr().err == ""


HUNGRY = """\
import numpy as np
from decoct.data.base import Data, Dataset


class Hungry(Data):
    use = "hungry_data:Hungry"

    def open(self, *, offline: bool = False) -> Dataset:
        np.ones(1 << 50)
        raise AssertionError
"""


def test_full_memory_is_exit_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hungry_data.py").write_text(HUNGRY, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(TINY.replace("{use: digits, limit: 40}", "{use: 'hungry_data:Hungry'}"))
    monkeypatch.syspath_prepend(tmp_path)
    code = cli.call(["check", str(tmp_path / "recipe.yaml"), "--plugin", "hungry_data"])
    assert code == 4
    assert "the memory is full (Unable to allocate" in capsys.readouterr().err
