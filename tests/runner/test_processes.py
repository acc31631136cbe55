"""A recipe in several processes ends as in one, however it is started, stopped, killed and continued."""

import copy
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from decoct.recipe.file import dump
from decoct.training.launching import LAUNCHER, environment
from process_groups import DEADLINE, ended
from process_scripts import trains
from tiny import PAIR, recipe, records, timeless, tree

SCRIPT = Path(__file__).parents[1] / "process_scripts.py"
SGD = {"use": "sgd", "lr": 0.1}
DECOCT = (sys.executable, "-m", "decoct")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def plain(*, dropout: float = 0.0) -> dict[str, Any]:
    """Teacher, student, the student pruned in two rounds, and one that hears its teacher on a source beside the data.

    Batches do not divide evenly: the last one of an epoch, of the data and of the source, is one sample.
    """
    made = copy.deepcopy(dict(PAIR))
    learn = {"budget": {"epochs": 2}, "batch_size": 9, "log_every": 2, "optimizer": SGD}
    student = {"use": "mlp", "hidden": [12], "dropout": dropout}
    made["models"] = {"large": made["models"]["large"], "small": student}
    made["data"] = {"use": "digits", "limit": 46}
    made["sources"] = {"target": {"use": "digits", "limit": 10, "validation": 0.3}}
    made["steps"] = [
        {"use": "train", "name": "teacher", "inputs": {"model": "large"}, **learn},
        {"use": "distill", "name": "student", "inputs": {"model": "small", "teacher": "teacher"}, **learn},
        {"use": "prune", "name": "pruned", "inputs": {"model": "student", "teacher": "teacher"}, **learn}
        | {"scheme": {"use": "magnitude", "ratio": 0.5}, "recover": {"use": "iterative", "rounds": 2}},
        {"use": "export", "name": "file", "inputs": {"model": "student"}},
        {"use": "distill", "name": "beside", "inputs": {"model": "small", "teacher": "teacher"}, **learn}
        | {"objective": [{"use": "cross_entropy"}, {"use": "kd", "source": "target"}]},
    ]
    return made


def written(folder: Path, made: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(dump(made))
    return path


def called(*words: Any, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(each) for each in words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=DEADLINE)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def largest(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs' artifacts."""
    paths = sorted(one.glob("[0-9]*/model.safetensors"))
    assert paths
    both = [(load_file(path), load_file(other / path.relative_to(one))) for path in paths]
    return max(float((a[name].double() - b[name].double()).abs().max()) for a, b in both for name in a)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    return recipe(plain()).run(tmp_path_factory.mktemp("one") / "run").folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = called(*DECOCT, "run", written(folder, plain()), "--nproc", 2, "--out", folder / "run", "--json")
    assert json.loads(done.stdout)["results"]["processes"] == 2
    return folder / "run"


def test_two_processes_leave_what_one_leaves(one: Path, two: Path) -> None:
    assert largest(one, two) < 1e-5
    assert set(tree(one)) == set(tree(two))
    for mine, theirs in zip(records(one / "log.jsonl"), records(two / "log.jsonl"), strict=True):
        assert {name: mine[name] for name in ("kind", "step", "step_number")} == {
            name: theirs[name] for name in ("kind", "step", "step_number")
        }
        for numbers in ("terms", "scores"):
            assert mine.get(numbers, {}) == pytest.approx(theirs.get(numbers, {}), rel=1e-3, abs=1e-5)


def test_copies_of_one_process_leave_what_processes_by_themselves_leave(two: Path, tmp_path: Path) -> None:
    alone = "from decoct.training import launching; launching.ACCELERATORS = ('/',); "
    script = [sys.executable, "-c", f"{alone}from decoct.cli.app import main; main()"]
    called(*script, "run", written(tmp_path, plain()), "--nproc", 2, "--out", tmp_path / "run", "--quiet")
    assert largest(two, tmp_path / "run") == 0


@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        + ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_give_the_same(launcher: Sequence[str], two: Path, tmp_path: Path) -> None:
    """They find the steps done that their own processes need not do again, and train the one that is not there."""
    made = plain()
    made["steps"] = made["steps"][:2]
    words = ["-m", "decoct", "run", written(tmp_path, made), "--out", tmp_path / "run"]
    done = called(*launcher, *words)
    assert largest(tmp_path / "run", two) == 0
    assert done.stdout.count("Page: ") == 1


def test_two_nodes_with_an_agent_each_leave_what_one_process_leaves(one: Path, tmp_path: Path) -> None:
    """Two agents of torchrun meet on the loopback and see one folder; each has one process, of local rank 0."""
    made = plain()
    made["steps"] = made["steps"][:2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-id"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, "decoct", "-m", "decoct", "run"]
    command += [str(written(tmp_path, made)), "--out", str(tmp_path / "run")]
    for code, errors in ended([command] * 2, [ENVIRONMENT] * 2):
        assert code == 0, errors
    assert json.loads((tmp_path / "run/results.json").read_text())["processes"] == 2
    assert largest(tmp_path / "run", one) < 1e-5


def compressed() -> dict[str, Any]:
    """Students rounded with static and with dynamic ranges, and one that is fitted layer by layer."""
    made = plain()
    learn = {"budget": {"epochs": 2}, "batch_size": 9, "log_every": 2, "optimizer": SGD, "select": "last"}
    made["models"] = {"large": made["models"]["large"], "small": {"use": "mlp", "hidden": [12]}}
    made["steps"] = [
        {"use": "train", "name": "maps", "inputs": {"model": "large"}, **learn},
        {"use": "train", "name": "rows", "inputs": {"model": "small"}, **learn},
        {"use": "qat", "name": "static", "inputs": {"model": "maps"}, **learn},
        {"use": "qat", "name": "dynamic", "inputs": {"model": "rows"}, **learn}
        | {"scheme": {"use": "fake_quantize", "activations": "dynamic"}},
        {"use": "rewrite", "name": "fitted", "inputs": {"model": "maps"}, **learn}
        | {"scheme": {"use": "low_rank", "rank": 2}, "recover": {"use": "layer_by_layer", "share": 0.5}},
    ]
    return made


def test_rounded_and_fitted_students_are_those_of_one_process(tmp_path: Path) -> None:
    """They start from one trained model: rounding makes of its last bit another grid point."""
    path = written(tmp_path, compressed())
    alone = recipe(compressed()).run(tmp_path / "alone").folder
    for trained in alone.glob("0[12]-*"):
        shutil.copytree(trained, tmp_path / "run" / trained.name)
    called(*DECOCT, "run", path, "--nproc", 2, "--out", tmp_path / "run", "--quiet")
    skipped = [each["skipped"] for each in json.loads((tmp_path / "run/results.json").read_text())["steps"]]
    assert skipped == [True, True, False, False, False]
    assert largest(alone, tmp_path / "run") < 1e-5


def test_a_script_that_torchrun_starts(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [environment(rank, 2, port, ENVIRONMENT) for rank in range(2)]
    for place in places:
        del place[LAUNCHER]
    codes, errors = zip(*ended([[sys.executable, str(SCRIPT), str(tmp_path)]] * 2, places))

    alone = tmp_path / "alone"
    alone.mkdir()
    trains(alone)
    sums = [float(path.read_text()) for path in (alone / "sum-0", tmp_path / "sum-0", tmp_path / "sum-1")]
    assert sums[1] == sums[2] == pytest.approx(sums[0], rel=1e-5)
    for rank in range(2):  # an error that all meet, and one that one of them meets: both are raised in all, who go on
        assert "relates the samples of a batch" in (tmp_path / f"refused-{rank}").read_text()
        assert (tmp_path / f"failed-{rank}").read_text() == "DataError: sample 7 of the second disk cannot be read"
        assert (tmp_path / f"after-{rank}").read_text() == "[1.0]"
    assert codes == (1, -signal.SIGKILL)
    assert "ResourceError: another of the 2 processes was lost" in errors[0]


def test_an_error_has_its_exit_code_and_is_said_once(tmp_path: Path) -> None:
    made = plain()
    made["data"] = {"use": "image_folder", "path": str(tmp_path / "nothing")}
    done = called(*DECOCT, "run", written(tmp_path, made), "--nproc", 2, "--out", tmp_path / "run", code=3)
    assert done.stderr.count(str(tmp_path / "nothing")) == 1
    assert "Traceback" not in done.stderr


def until_checkpoint(folder: Path, started: subprocess.Popen[bytes]) -> None:
    """Waits for a new checkpoint, or the end."""

    def there() -> set[Path]:
        return set(folder.glob(".*.work/checkpoint-*"))

    before, last = there(), time.monotonic() + DEADLINE
    while started.poll() is None and not there() - before:
        assert time.monotonic() < last, "no checkpoint comes"
        time.sleep(0.005)


def family(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    parent = psutil.Process(started.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.parametrize("kills", [("all", "term"), pytest.param(("launcher", "one", "all"), marks=pytest.mark.slow)])
def test_killed_and_stopped_a_run_ends_as_one_that_was_left_alone(kills: Sequence[str], tmp_path: Path) -> None:
    made = plain(dropout=0.3)
    made["steps"] = made["steps"][:2]
    for step, epochs in zip(made["steps"], (2, 40)):
        step |= {"budget": {"epochs": epochs}, "checkpoint_seconds": 0.1}
    path, drawn = written(tmp_path, made), random.Random(0)
    words = [*DECOCT, "run", str(path), "--nproc", "2", "--quiet", "--out"]
    called(*words, tmp_path / "whole")
    broken = tmp_path / "broken"
    for kill in kills:
        started = subprocess.Popen([*words, str(broken)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        until_checkpoint(broken, started)
        time.sleep(drawn.uniform(0, 0.3))
        members = family(started)
        if started.poll() is None and len(members) == 3:
            if kill == "term":
                started.send_signal(signal.SIGTERM)
            for each in {"all": members, "launcher": members[:1], "one": members[2:]}.get(kill, []):
                each.kill()
        assert started.wait(DEADLINE) in (0, {"all": -9, "launcher": -9, "one": 4, "term": 128 + signal.SIGTERM}[kill])
        _, alive = psutil.wait_procs(members, timeout=DEADLINE)
        assert not alive
    called(*words, broken)
    assert largest(tmp_path / "whole", broken) == 0
    assert timeless(tmp_path / "whole/log.jsonl") == timeless(broken / "log.jsonl")
