"""The log of a run: what stands in it after each step, after a stop and at the end, and what writing it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from decoct.artifact import Artifact, writing
from decoct.recipe.graph import Node, graph
from decoct.recipe.recipe import Recipe
from decoct.runner.logs import GrowingLog, joined_log, own_log
from decoct.runner.verify import verify_run
from tiny import PAIR, Watch, recipe, timeless

RECORDS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 2.5, "terms": {"kd": 1e-07}, "lr": 0.0, "time": 0.1},
    {"kind": "validation", "step": 1, "epoch": 0, "scores": {"accuracy": 0.5}, "time": 0.25},
    {"kind": "train", "step": 2, "terms": {"step": 3.0, "a}": None}, "words": 'says "kind": \\ "x" é'},
    {"loss": 1.0, "step": 3, "kind": "train"},
    {"kind": "large", "step": 4},
    {"kind": "fit", "n": 3},
    {"kind": "train", "step": -1, "loss": None},
]


def trains(count: int) -> Recipe:
    """A recipe of so many tiny steps."""
    step = {"use": "train", "inputs": {"model": "small"}, "budget": {"steps": 1}, "batch_size": 16}
    return recipe(PAIR, steps=[{**step, "name": f"s{number}"} for number in range(count)])


def node(name: str = "student") -> Node:
    return next(each for each in graph(recipe(), [5]) if each.step.name == name)


def artifact(folder: Path, lines: list[str]) -> Artifact:
    with writing(folder, kind="model", name="student") as draft:
        (draft.folder / "log.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return Artifact.load(folder)


def wanted(record: dict[str, Any], step: str = "student") -> str:
    record = dict(record)
    number = {"step_number": record.pop("step")} if "step" in record else {}
    return json.dumps({"step": step, "seed": 5, **number, **record})


@contextmanager
def opened(below: Path) -> Iterator[list[str]]:
    """The names of the files below a folder that the body opens, each time that it does."""
    names: list[str] = []
    counting = [True]

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if counting[0] and event == "open" and isinstance(given[0], str) and given[0].startswith(str(below)):
            names.append(Path(given[0]).name)

    sys.addaudithook(heard)
    try:
        yield names
    finally:
        counting[0] = False


@pytest.mark.parametrize("further", [{}, {"seed": 9}, {"step_number": 4}, {"nested": {"seed": 1}}])
def test_lines_say_what_reading_and_writing_them_again_says(tmp_path: Path, further: dict[str, Any]) -> None:
    records = [{**each, **further} for each in RECORDS]
    made = artifact(tmp_path / "made", [json.dumps(each) for each in records])
    assert own_log(node(), made).splitlines() == [wanted(each) for each in records]


def test_a_step_without_a_log_adds_nothing(tmp_path: Path) -> None:
    with writing(tmp_path / "made", kind="records", name="benchmark"):
        pass
    assert own_log(node(), Artifact.load(tmp_path / "made")) == ""


def test_a_stopped_run_holds_the_log_of_the_steps_that_are_done_and_goes_on_to_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def watch(event: Any) -> None:
        if (event["step"], event["event"]) == ("student", "progress"):
            raise Stop

    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("of another run\n")
    with pytest.raises(Stop):
        recipe().run(run, watch=watch)
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(each["step"] for each in found)) == ["teacher", "student_alone"]
    done = recipe().run(run)
    whole = recipe().run(tmp_path / "whole")
    assert timeless(run / "log.jsonl") == timeless(tmp_path / "whole/log.jsonl")
    log = (run / "log.jsonl").read_text()
    assert log == joined_log(graph(recipe(), [0]), done.artifacts)
    assert [each["name"] for each in done.results["steps"]] == [each["name"] for each in whole.results["steps"]]
    assert not [each for each in verify_run(run) if each.wrong]
    recipe().run(run)
    assert (run / "log.jsonl").read_text() == log


def test_while_a_step_runs_the_log_is_that_of_the_steps_before_it(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def watch(event: Any) -> None:
        if event["event"] == "progress" and event["step"] not in seen:
            lines = (tmp_path / "log.jsonl").read_text().splitlines()
            seen[event["step"]] = list(dict.fromkeys(json.loads(line)["step"] for line in lines))

    recipe().run(tmp_path, watch=watch)
    assert seen == {"teacher": [], "student_alone": ["teacher"], "student": ["teacher", "student_alone"]}
    seen.clear()
    recipe(steps__2__batch_size=8).run(tmp_path, watch=watch)
    assert seen == {"student": ["teacher", "student_alone"]}


def test_a_log_that_another_changed_meanwhile_is_joined_once_more(tmp_path: Path) -> None:
    made = artifact(tmp_path / "made", [json.dumps(each) for each in RECORDS])
    log, one = GrowingLog(tmp_path), node()
    log.add(one, made)
    log.write()
    (tmp_path / "log.jsonl").write_text("something else\n")
    log.finish([one], {one.id: made})
    assert (tmp_path / "log.jsonl").read_text() == joined_log([one], {one.id: made}) != ""


def test_what_is_written_and_read_grows_as_the_steps_do(tmp_path: Path) -> None:
    found = {}
    for count in (3, 9):
        run = tmp_path / str(count)
        with opened(run) as made:
            trains(count).run(run)
        watch = Watch()
        with opened(run) as skipped:
            trains(count).run(run, watch=watch)
        assert watch.steps("skipped") == [f"s{number}" for number in range(count)]
        found[count] = [(names.count("log.jsonl"), len(names)) for names in (made, skipped)]
    for (logs, files), (more_logs, more_files) in zip(found[3], found[9]):
        assert more_logs <= 3 * logs
        assert more_files <= 3 * files
    assert found[9][1][0] <= 3 * 9, "a log of a skipped step is checked once and joined once"


def test_a_run_that_skips_all_writes_its_log_once(tmp_path: Path) -> None:
    trains(4).run(tmp_path)
    with opened(tmp_path) as names:
        trains(4).run(tmp_path)
    assert names.count(".log.jsonl.writing") <= 2  # opened to be written, and to be synced
