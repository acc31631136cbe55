import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from far_toys import CLASSES, Deadly, Faulty, Plain, Slow, bullets, children, network, source, trained
from torch import nn

from decoct.artifact import Artifact, writing
from decoct.errors import IntegrityError, PathError, RecipeError, ResourceError
from decoct.models.mlp import MLP
from decoct.models.saving import save_model
from decoct.outputs import Batch, Needs
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.frozen import Frozen
from decoct.teachers.remote.process import ProcessTeacher
from decoct.teachers.remote.running_ahead import RunsAhead

NOTHING = Needs()


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    assert children() == []
    assert not [each for each in threading.enumerate() if each.name.startswith("decoct-worker")]


def until(found, seconds=300):
    """What `found()` gives as soon as that is true; a failure where it never is."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def opened(module, needs=NOTHING, reading=None, autocast=None, **settings):
    return ProcessTeacher(**settings).open(module, reading or Plain(), needs, autocast=autocast)


def same(left, right):
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("workers, kills", [(1, (1, 13, 14, 30, 44)), (2, (5, 40))])
def test_killed_again_and_again_it_teaches_as_the_live_teacher_does(workers, kills):
    net, steps = Slow(), 60
    with Frozen().open(net, Plain(), NOTHING) as live:
        expected, told = trained(live, source(augment=True), steps)
    with opened(net, workers=workers, ahead=4) as teacher:

        def kill(step):
            if step in kills:
                pids = until(teacher.pids)
                os.kill(pids[step % len(pids)], signal.SIGKILL)

        running = RunsAhead(source(augment=True), [teacher])
        found, seen = trained(teacher, running, steps, kill)
        running.close()
    assert same(found, expected)
    assert [keys for keys, _ in seen] == [keys for keys, _ in told]
    assert all(torch.equal(left, right) for (_, left), (_, right) in zip(seen, told))
    counts = teacher.counts
    assert 1 <= counts.restarts <= len(kills)
    assert counts.resent >= 1
    assert steps <= counts.answered <= counts.asked <= steps + 4
    assert counts.asked - counts.dropped == steps


def test_features_memory_layouts_and_types_arrive_as_they_were():
    net = network()
    with (
        opened(net, Needs(frozenset({"0", "2", "4@weight"}))) as far,
        Frozen().open(net, Plain(), Needs(frozenset({"0", "2", "4@weight"}))) as live,
    ):
        batch = next(iter(source()))
        left, right = far(batch), live(batch)
        assert torch.equal(left.logits, right.logits)
        assert same(left.features, right.features)
        left.logits.mul_(2)  # its memory is its own
    images = torch.randn(3, 4, 6, 6).to(memory_format=torch.channels_last)
    with opened(nn.Identity()) as echo:
        for x in (images, images[:, ::2], images[:0], torch.arange(5).bool(), images.bfloat16().transpose(0, 3)):
            outputs = echo(Batch({"teacher": x})).logits
            assert outputs.dtype == x.dtype
            assert torch.equal(outputs, x)
        assert echo(Batch({"teacher": images})).logits.is_contiguous(memory_format=torch.channels_last)
        for strides in ((36, 1, 6, 1), (36, 36, 6, 1)):  # both are contiguous, and torch takes other kernels for each
            grey = torch.randn(72).as_strided((2, 1, 6, 6), strides)
            assert echo(Batch({"teacher": grey})).logits.stride() == strides


def test_the_precision_of_the_run_is_used_and_the_callers_module_is_left_alone():
    net = network()
    net.train()
    with opened(net, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)) as teacher:
        assert teacher(next(iter(source()))).logits.dtype == torch.bfloat16
        assert net[3].training
        assert net[0].weight.requires_grad
        assert not net[0].weight.is_shared()


def test_an_error_in_a_worker_arrives_with_its_text_and_the_worker_lives_on():
    good, bad, *_ = source()
    bad.side("teacher")[0, 0] = 1e7
    with opened(Faulty()) as teacher:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: these numbers are too large") as caught:
            teacher(bad)
        assert "far_toys.py" in "".join(caught.value.__notes__)
        assert teacher(good).logits.shape == (4, CLASSES)
    assert teacher.counts.restarts == 0
    with (
        opened(network(), Needs(frozenset({"00"}))) as teacher,
        pytest.raises(PathError, match="no module '00'"),
    ):
        teacher(good)


def test_a_model_that_changes_itself_is_caught_at_the_end():
    with (
        pytest.raises(IntegrityError, match="teacher Faulty changed while it taught: buffer calls;"),
        opened(Faulty(writes=True)) as teacher,
    ):
        teacher(next(iter(source())))


def test_a_breach_does_not_hide_the_error_that_ended_the_body():
    with pytest.raises(ZeroDivisionError), opened(Faulty(writes=True)) as teacher:
        _ = teacher(next(iter(source()))).logits.shape[0] / 0


def test_a_module_that_was_trained_meanwhile_is_refused_when_a_worker_starts_again():
    net = network()
    batches = iter(source())

    def killed():
        with opened(net) as teacher:
            teacher(next(batches))
            net[0].weight.data += 1
            os.kill(teacher.pids()[0], signal.SIGKILL)
            teacher(next(batches))

    with pytest.raises(IntegrityError, match="changed between one worker's start and another's"):
        killed()


def test_after_too_many_deaths_in_a_row_it_is_given_up(tmp_path):
    batches = list(source())
    batches[2].side("teacher")[0, 0] = 1e7
    net = Deadly(bullets(tmp_path / "enough", 2))
    with opened(net, restarts=2) as teacher:
        assert [len(teacher(batch).logits) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert teacher.counts.restarts == 2
    net = Deadly(bullets(tmp_path / "many", 9))

    def learn():
        with opened(net, restarts=1) as teacher:
            tickets = [teacher.submit(batch) for batch in batches]
            assert len(teacher.result(tickets[1]).logits) == 4
            for ticket in tickets[2:]:
                with pytest.raises(ResourceError, match="2 times in a row"):
                    teacher.result(ticket)
            with pytest.raises(ResourceError, match="2 times in a row"):
                teacher.submit(batches[0])

    with pytest.raises(ResourceError, match="ended with code 9, 2 times in a row; is memory short"):
        learn()
    assert len(list((tmp_path / "many").iterdir())) == 7


def test_what_was_dropped_is_not_made(tmp_path):
    batches = list(source())
    batches[-1].side("teacher")[0, 0] = 1e7
    folder = bullets(tmp_path / "bullets", 5)
    with opened(Deadly(folder)) as teacher:
        tickets = [teacher.submit(batch) for batch in batches]
        teacher.drop(tickets[-1])
        teacher.result(tickets[-2])
        waited = teacher.counts.waited_s
        assert all(len(teacher.result(ticket).logits) == 4 for ticket in tickets[:-1])
        assert teacher.counts.waited_s == waited
    assert teacher.counts.dropped == 1
    assert len(os.listdir(folder)) == 5


def test_no_process_stays_after_an_exception():
    def left():
        with opened(Slow(1.0), workers=2) as teacher:
            teacher(next(iter(source())))
            for batch in source():
                teacher.submit(batch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        left()


@pytest.mark.parametrize("how", ["leave", signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_stays_when_the_program_ends(how):
    words = [sys.executable, Path(__file__).with_name("leaving.py"), how if isinstance(how, str) else "wait"]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(each) for each in program.stdout.readline().split()]
    assert len(pids) == 2
    if not isinstance(how, str):
        program.send_signal(how)
    program.communicate(timeout=300)
    until(lambda: not any(alive(each) for each in pids))


def test_an_artifact_is_loaded_by_the_workers_themselves(tmp_path):
    task = TabularClassification(classes=tuple("abcde"), shape=(6,), raw=True)
    spec = MLP(hidden=(8,))
    torch.manual_seed(0)
    net = spec.build(task.reading("teacher").interface)
    with writing(tmp_path / "a", kind="model", name="a", meta={"side": "teacher"}) as draft:
        save_model(draft, net, spec, task.reading("teacher").interface, side="teacher")
    batch = next(iter(source()))
    reading = task.reading("teacher")
    far, live = opened(Artifact.load(tmp_path / "a"), reading=reading), Frozen().open(net, reading, NOTHING)
    with far as left, live as right:
        assert torch.equal(left(batch).logits, right(batch).logits)


def test_what_cannot_teach_there_is_refused():
    with pytest.raises(RecipeError, match="not dict"):
        opened({})
    with pytest.raises(RecipeError, match="without gradients"):
        opened(network(), Needs(gradient=True))

    class Local(nn.Module):
        pass

    with pytest.raises(RecipeError, match=r"cannot be sent to another process .*top of a module"), opened(Local()):
        pass
