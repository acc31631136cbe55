"""Folders of runs: whose checkpoints stand there, what goes, and in which order."""

from pathlib import Path

import pytest

from decoct.errors import ResourceError
from decoct.runner.folders import LOCK, lock, remove_held, stamp, work_folder


def test_checkpoints_of_one_key_stay_and_those_of_another_go(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert stamp(work) == ""
    (work_folder(work, "a") / "checkpoint-1").mkdir()
    assert (work_folder(work, "a") / "checkpoint-1").is_dir()
    assert stamp(work) == "a"
    assert [path.name for path in work_folder(work, "b").iterdir()] == ["key"]
    assert stamp(work) == "b"


def test_a_folder_of_which_nobody_knows_whose_it_is_is_begun_anew(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "checkpoint-1").mkdir(parents=True)
    assert [path.name for path in work_folder(work, "a").iterdir()] == ["key"]


def test_a_held_folder_is_held_once_and_let_go_also_by_an_error(tmp_path: Path) -> None:
    def failing() -> None:
        with lock(tmp_path / "run"):
            with pytest.raises(ResourceError, match=r"is held by process \d+ on "), lock(tmp_path / "run"):
                pass
            assert (tmp_path / "run" / ".holder").is_file()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert not (tmp_path / "run" / ".holder").exists()
    with lock(tmp_path / "run"):
        pass


def test_a_folder_that_is_removed_is_held_to_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with lock(run):
        (run / "steps").mkdir()
        (run / "steps" / "a").write_text("x")
        (run / "b").write_text("x")
        remove_held(run)
        assert not run.exists()
    assert not list(tmp_path.glob(f"**/{LOCK}"))
