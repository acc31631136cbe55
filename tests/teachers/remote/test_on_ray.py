import os
import signal

import pytest
import torch
from far_toys import Faulty, Plain, Squares, Teaching, bullets, network, source

from decoct.errors import IntegrityError, RecipeError, ResourceError
from decoct.outputs import Needs
from decoct.teachers.frozen import Frozen
from decoct.teachers.remote.on_ray import RayTeacher, cluster, run_jobs_on_ray
from decoct.teachers.remote.running_ahead import RunsAhead

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _one_cluster():
    """One for all tests here: the program stays in it."""
    with cluster(cpus=2):
        yield


def test_a_killed_actor_is_started_again_and_the_answers_are_those_of_the_live_teacher():
    net = network()
    with Frozen().open(net, Plain(), Needs()) as live:
        batches = source()
        expected = [live(batch).logits for _ in range(2) for batch in batches]
    with RayTeacher(workers=1, ahead=3).open(net, Plain(), Needs()) as teacher:
        running = RunsAhead(source(), [teacher])
        found = []
        for _ in range(2):
            for number, batch in enumerate(running):
                if number == 2:
                    os.kill(teacher.pids()[0], signal.SIGKILL)
                found.append(teacher(batch).logits)
        running.close()
    assert len(found) == len(expected)
    assert all(torch.equal(left, right) for left, right in zip(found, expected))
    assert teacher.counts.restarts >= 1


def test_errors_and_a_broken_contract_are_told():
    batch, large, *_ = source()
    large.side("teacher")[0, 0] = 1e7

    def learn():
        with RayTeacher().open(Faulty(writes=True), Plain(), Needs()) as teacher:
            teacher(batch)
            with pytest.raises(RuntimeError, match="ZeroDivisionError: these numbers are too large"):
                teacher(large)

    with pytest.raises(IntegrityError, match="Faulty changed while it taught: buffer calls"):
        learn()


def test_jobs_are_done_once_also_where_an_actor_dies(tmp_path):
    factory = Squares(bullets(tmp_path / "bullets", 1), deadly=6)
    jobs = list(range(0, 20, 2))
    results = list(run_jobs_on_ray(jobs, factory, workers=1))
    assert sorted(number for number, _ in results) == list(range(10))
    assert {number: int(result.split()[0]) for number, result in results} == {n: j * j for n, j in enumerate(jobs)}
    assert not list((tmp_path / "bullets").iterdir())
    with pytest.raises(RuntimeError, match="ValueError: 4 is wrong"):
        list(run_jobs_on_ray([1, 4], Squares(wrong=4), workers=1))
    assert list(run_jobs_on_ray([], Squares(), workers=1)) == []


def test_jobs_of_a_teacher_that_changed_are_not_accepted():
    assert sorted(run_jobs_on_ray([1, 2], Teaching, workers=1)) == [(0, b"1"), (1, b"2")]
    found = []
    with pytest.raises(IntegrityError, match="Faulty changed while it taught: buffer calls"):
        found.extend(run_jobs_on_ray([3], Teaching, workers=1))
    assert found == []


def test_a_job_that_always_kills_is_given_up(tmp_path):
    factory = Squares(bullets(tmp_path / "bullets", 99), deadly=1)
    with pytest.raises(ResourceError, match="labelling on Ray"):
        list(run_jobs_on_ray([1], factory, workers=1, restarts=0))
    assert len(list((tmp_path / "bullets").iterdir())) == 98


def test_a_program_stays_in_the_cluster_that_it_is_in():
    with cluster("auto") as ray:
        own = ray.get_runtime_context().gcs_address
        with cluster(own), cluster(f"localhost:{own.rpartition(':')[2]}"):
            pass
        with pytest.raises(RecipeError, match=f"this program is in the Ray cluster at {own}"), cluster("10.0.0.1:1"):
            pass
    assert ray.is_initialized()
