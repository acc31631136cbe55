import threading

import pytest
import torch
from far_toys import Odd, Unwritable, children

from decoct.errors import RecipeError, ResourceError
from decoct.outputs import Outputs, TopK
from decoct.teachers.remote.workers import Workers

LONG = 120
"""Seconds after which a question that nobody answers fails the test."""


@pytest.fixture
def workers():
    made = Workers(Odd(), workers=1, threads=1, restarts=1)
    yield made
    made.close(orderly=False)
    assert children() == []
    assert not [each for each in threading.enumerate() if each.name.startswith("decoct-worker")]


def test_an_answer_that_cannot_be_written_is_an_error_and_the_worker_lives_on(workers):
    with pytest.raises(RuntimeError, match=r"in a worker: .*pickle"):
        workers.ask("cannot be written").result(LONG)
    assert workers.ask("fine").result(LONG) == "fine"
    assert workers.restarted == 0


def test_where_this_side_fails_everybody_who_waits_is_told(workers):
    questions = [workers.ask(each) for each in ("fine", "cannot be read", "after", "later")]
    assert questions[0].result(LONG) == "fine"
    for each in questions[1:]:
        with pytest.raises(ResourceError, match="RuntimeError: no memory left"):
            each.result(LONG)
    with pytest.raises(ResourceError, match="no memory left"):
        workers.ask("fine")
    with pytest.raises(ResourceError, match="no memory left"):
        workers.close()


def test_a_question_that_cannot_be_written_is_refused_and_memory_that_is_short_ends_all(workers):
    with pytest.raises(RecipeError, match="too long, so it cannot be sent"):
        workers.ask(Unwritable(ValueError("too long"))).result(LONG)
    assert workers.ask("fine").result(LONG) == "fine"
    with pytest.raises(ResourceError, match="MemoryError: full"):
        workers.ask(Unwritable(MemoryError("full"))).result(LONG)


def test_all_tensors_of_a_cut_distribution_are_moved():
    generator = torch.Generator().manual_seed(0)
    top = TopK.of(torch.randn(2, 6, generator=generator), 2, tail="sample", draws=3, generator=generator)
    found = Outputs(top).map(lambda tensor: tensor.to("meta")).top
    parts = [found.ids, found.log_probs, found.rest, found.drawn, found.drawn_log_probs]
    assert {each.device.type for each in parts} == {"meta"}
