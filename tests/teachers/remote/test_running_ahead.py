import pytest
import torch
from far_toys import Threaded, source
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.data.base import Source
from decoct.data.given import LoaderSource
from decoct.data.rollouts import Rollouts
from decoct.data.sources import Together
from decoct.errors import DataError, RecipeError
from decoct.outputs import Batch
from decoct.teachers.remote.base import Ahead
from decoct.teachers.remote.running_ahead import RunsAhead


def same(left, right):
    assert left.keys.tolist() == right.keys.tolist()
    assert torch.equal(left.side("student"), right.side("student"))
    assert left.view == right.view


def drawn(from_, count):
    """`count` batches, over the ends of epochs, with the position after each."""
    found = []
    while len(found) < count:
        for batch in from_:
            found.append((batch, from_.state_dict()))
            if len(found) == count:
                break
    return found


@given(
    samples=st.integers(1, 23),
    batch_size=st.integers(1, 6),
    ahead=st.integers(1, 9),
    prefetch=st.integers(0, 2),
    stop=st.integers(0, 20),
    broken_off=st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_from_any_position_the_batches_are_those_of_the_source(samples, batch_size, ahead, prefetch, stop, broken_off):
    def made():
        return source(samples, batch_size, augment=True, prefetch=prefetch)

    live = drawn(made(), stop + 12)
    teacher = Threaded()
    running = RunsAhead(made(), [teacher], ahead=ahead)
    assert running.length == made().length
    first = drawn(running, stop + broken_off)
    for (batch, position), (expected, expected_position) in zip(first, live):
        same(batch, expected)
        assert position == expected_position
        assert torch.equal(teacher(batch).logits, batch.side("teacher").sum(1, keepdim=True))
    position = live[stop - 1][1] if stop else made().state_dict()
    again = RunsAhead(made(), [teacher], ahead=ahead)
    again.load_state_dict(position)
    running.load_state_dict(position)  # also one that had gone further
    assert running.state_dict() == position
    for each in (again, running):
        for (batch, at), (expected, expected_at) in zip(drawn(each, 12), live[stop:]):
            same(batch, expected)
            assert at == expected_at
            assert torch.equal(teacher(batch).logits, batch.side("teacher").sum(1, keepdim=True))
        each.close()
    teacher.pool.shutdown()


def test_an_epoch_ends_where_the_inner_one_does_and_each_question_is_asked_once():
    teacher = Threaded(room=4)
    running = RunsAhead(source(10, 4), [teacher])
    epochs = [[batch.keys.tolist() for batch in running] for _ in range(3)]
    live = source(10, 4)
    assert epochs == [[batch.keys.tolist() for batch in live] for _ in range(3)]
    flat = [keys for epoch in epochs for keys in epoch]
    assert teacher.asked[: len(flat)] == flat
    assert len(teacher.asked) <= len(flat) + 4
    running.close()
    assert teacher.counts.dropped == len(teacher.asked) - len(flat)


def test_the_queue_is_full_before_the_first_batch_is_handed_out_and_never_fuller():
    teacher = Threaded(room=3)
    running = RunsAhead(source(40, 4), [teacher])
    for number, _ in enumerate(running, start=1):
        assert len(teacher.asked) == number + 2


def test_of_a_source_that_is_not_fixed_nothing_is_drawn_before_it_is_wanted():
    def made(batch, seeds):
        drawn.append(batch.keys.tolist())
        return batch

    drawn: list[list[int]] = []
    teacher = Threaded(room=3)
    running = RunsAhead(Rollouts(source(20, 4), made, seed=0), [teacher])
    assert not running.fixed
    assert running.length == 5
    for number, batch in enumerate(running, start=1):
        assert len(drawn) == len(teacher.asked) == number
        assert running.state_dict()["drawn"] == number
        assert torch.equal(teacher(batch).logits, batch.side("teacher").sum(1, keepdim=True))
        assert len(teacher.asked) == number
    again = RunsAhead(Rollouts(source(20, 4), made, seed=0), [teacher])
    again.load_state_dict(running.state_dict())
    assert again.state_dict() == running.state_dict()
    assert next(iter(again)).view == 1


def test_who_reads_a_source_beside_is_asked_about_it_too():
    reader, other = Threaded(), Threaded()
    both = Together(source(8, 4), {"a": source(9, 3, seed=1), "b": source(6, 3, seed=2)})
    running = RunsAhead(both, [reader, other], beside={reader: {"a"}})
    batch = next(iter(running))
    assert set(batch.tickets) == {reader, other}
    assert set(batch.also["a"].tickets) == {reader}
    assert not batch.also["b"].tickets
    asked = len(reader.asked)
    assert torch.equal(reader(batch.also["a"]).logits, batch.also["a"].side("teacher").sum(1, keepdim=True))
    assert len(reader.asked) == asked
    waiting = len(reader.asked) + len(other.asked) - 3
    running.close()
    assert reader.counts.dropped + other.counts.dropped == waiting


def test_what_was_asked_for_is_not_asked_again_and_without_a_ticket_it_is():
    teacher = Threaded()
    running = RunsAhead(source(8, 4), [teacher])
    batch = next(iter(running))
    asked = len(teacher.asked)
    assert torch.equal(teacher(batch).logits, teacher(batch.to("cpu")).logits)
    assert len(teacher.asked) == asked == teacher.counts.asked
    bare = Batch(batch.inputs, keys=batch.keys)
    assert torch.equal(teacher(bare).logits, teacher(batch).logits)
    assert len(teacher.asked) == asked + 1


def test_further_views_are_asked_about_too():
    class Viewed(Source):
        def __init__(self):
            self.inner = source(8, 4)

        @property
        def length(self):
            return self.inner.length

        def __iter__(self):
            for batch in self.inner:
                yield Batch(batch.inputs, keys=batch.keys, views=(Batch(batch.inputs, keys=batch.keys),))

        def state_dict(self):
            return self.inner.state_dict()

        def load_state_dict(self, state):
            self.inner.load_state_dict(state)

    teacher = Threaded()
    batch = next(iter(RunsAhead(Viewed(), [teacher], ahead=1)))
    assert batch.tickets[teacher].number == 1
    assert batch.views[0].tickets[teacher].number == 0
    assert len(teacher.asked) == 2


def test_an_error_of_the_source_comes_where_its_batch_would_have_come():
    items = (torch.full((2, 6), float(number)) for number in range(5))

    class Once:
        def __iter__(self):
            return items

        def __len__(self):
            return 5

    def to_batch(item):
        return Batch({"teacher": item}, keys=item[:, 0])

    running = RunsAhead(LoaderSource(Once(), to_batch), [Threaded(room=4)])
    assert [batch.keys[0].item() for batch in running] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="is it a generator, used up"):
        next(iter(running))


def test_a_source_without_batches_ends_at_once():
    class Empty(Source):
        @property
        def length(self):
            return 0

        def __iter__(self):
            return iter(())

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    assert list(RunsAhead(Empty(), [Threaded()])) == []


def test_what_cannot_run_ahead_is_refused():
    with pytest.raises(RecipeError, match="there is none"):
        RunsAhead(source(), [])
    with pytest.raises(RecipeError, match="ahead is 0"):
        RunsAhead(source(), [Threaded()], ahead=0)
    assert issubclass(Threaded, Ahead)


def test_an_answer_about_other_inputs_is_not_redeemed():
    """What was asked ahead about a batch is no answer about what stands in its place."""
    teacher = Threaded()
    batch = next(iter(RunsAhead(source(), [teacher])))
    other = 2 * batch.side("teacher") + 1
    both = {"student": other, "teacher": other}
    for changed in (batch.regenerated(both), batch.altered(both), batch.take(slice(1, 3))):
        wanted = changed.side("teacher").sum(1, keepdim=True)
        assert torch.equal(teacher(changed).logits, wanted)
    assert torch.equal(teacher(batch).logits, batch.side("teacher").sum(1, keepdim=True))
    assert teacher.asked.count(batch.keys.tolist()) == 2  # ahead, and about the altered samples, whose keys are theirs
