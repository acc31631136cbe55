import threading

import pytest
from far_toys import Squares, bullets, children

from decoct.errors import RecipeError, ResourceError
from decoct.teachers.remote.jobs import run_jobs


def numbers(results):
    return {number: int(result.split()[0]) for number, result in results}


def test_every_job_is_done_once_also_where_workers_die(tmp_path):
    factory = Squares(bullets(tmp_path / "bullets", 2), deadly=6)
    jobs = list(range(0, 20, 2))
    results = list(run_jobs(jobs, factory, workers=2, threads=1))
    assert sorted(number for number, _ in results) == list(range(10))
    assert numbers(results) == {number: job * job for number, job in enumerate(jobs)}
    assert len({result.split()[2] for _, result in results}) >= 2
    assert not list((tmp_path / "bullets").iterdir())
    assert children() == []


def test_a_job_that_always_kills_is_given_up_and_an_error_keeps_its_text(tmp_path):
    factory = Squares(bullets(tmp_path / "bullets", 99), deadly=3)
    with pytest.raises(ResourceError, match="ended with code 9"):
        list(run_jobs(range(9), factory, workers=1, threads=1, restarts=1))
    assert len(list((tmp_path / "bullets").iterdir())) == 97
    with pytest.raises(RuntimeError, match="ValueError: 4 is wrong"):
        list(run_jobs(range(9), Squares(wrong=4), workers=1, threads=1))
    assert children() == []


def test_jobs_are_drawn_as_they_are_needed_and_stopping_early_leaves_nothing():
    drawn = []

    def jobs():
        for number in range(1000):
            drawn.append(number)
            yield number

    results = run_jobs(jobs(), Squares(), workers=1, threads=1)
    assert next(results)[0] == 0
    results.close()
    assert len(drawn) <= 3
    assert children() == []
    assert not [each for each in threading.enumerate() if each.name.startswith("decoct-worker")]
    assert list(run_jobs([], Squares(), workers=1, threads=1)) == []


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(RecipeError, match="labelling cannot be sent to another process"):
        list(run_jobs([1], lambda: str, workers=1, threads=1))
    with pytest.raises(RecipeError, match="cannot be sent to a process"):
        list(run_jobs([lambda: 1], Squares(), workers=1, threads=1))
    assert children() == []
