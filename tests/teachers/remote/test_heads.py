"""Factored answers from elsewhere: the head travels once, and what is heard is what was said."""

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from far_toys import CLASSES, WIDTH, Causal, Factoring, children
from hypothesis import given
from hypothesis import strategies as st

from decoct.errors import DataError
from decoct.models.http_client import Client
from decoct.outputs import DENSE, Batch, Dense, Factored, Head, Needs, Outputs
from decoct.teachers.frozen import Frozen
from decoct.teachers.remote.heads import KEPT, Fetched, Moved, Offered
from decoct.teachers.remote.over_http import OverHttp
from decoct.teachers.remote.process import ProcessTeacher
from decoct.teachers.remote.server import _Desk, _Handler
from decoct.teachers.remote.tensors import from_head, from_inputs, from_outputs, to_head, to_outputs
from decoct.teachers.remote.wire import Got, Sent, decoded, encoded


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    assert children() == []
    assert not [each for each in threading.enumerate() if each.name.startswith("decoct-worker")]


def batches(count: int) -> list[Batch]:
    random = torch.Generator().manual_seed(0)
    return [Batch({"teacher": torch.randint(CLASSES, (3, 4), generator=random)}) for _ in range(count)]


def outputs(weight: torch.Tensor, **after: float) -> Outputs:
    return Outputs(Factored(torch.ones(2, WIDTH), Head(weight, None, **after)))


def size(message: tuple[bytes, list[memoryview]]) -> int:
    return len(message[0]) + sum(each.nbytes for each in message[1])


def over(outputs: Outputs, sent: Sent, got: Got) -> tuple[int, Outputs]:
    head, buffers = message = encoded(outputs, sent)
    return size(message), decoded(head, [bytearray(each) for each in buffers], got)


def test_a_head_is_written_once_to_a_connection_and_again_when_it_changed() -> None:
    weight, sent, got = torch.randn(500, WIDTH), Sent(), Got()
    first, teacher_outputs = over(outputs(weight), sent, got)
    assert first > weight.nbytes
    again, other = over(outputs(weight), sent, got)
    assert again < weight.nbytes / 4
    assert other.distribution.head is teacher_outputs.distribution.head
    weight.mul_(2)
    size_after, changed = over(outputs(weight), sent, got)
    assert size_after > weight.nbytes
    assert torch.equal(changed.distribution.head.weight, weight)
    assert over(outputs(weight, scale=0.5), sent, got)[1].distribution.head.scale == 0.5
    assert size(encoded(outputs(weight), Sent())) > weight.nbytes, "another connection has none"


@given(st.lists(st.integers(0, KEPT + 2), max_size=40))
def test_both_ends_forget_the_same_heads(order: list[int]) -> None:
    weights = [torch.full((3, WIDTH), float(i)) for i in range(KEPT + 3)]
    sent, got = Sent(), Got()
    for i in order:
        assert torch.equal(over(outputs(weights[i]), sent, got)[1].distribution.head.weight, weights[i])


def test_what_was_not_sent_is_not_taken_for_sent() -> None:
    weight, sent, got = torch.randn(500, WIDTH), Sent(), Got()
    with pytest.raises((AttributeError, TypeError)):
        encoded([outputs(weight), lambda: None], sent)
    assert over(outputs(weight), sent, got)[0] > weight.nbytes
    with torch.inference_mode():
        unmarked = torch.randn(500, WIDTH)
    for _ in range(2):  # it does not say when it changes, so it goes with each answer
        assert over(outputs(unmarked), sent, got)[0] > weight.nbytes
    assert over(outputs(weight), sent, got)[0] < weight.nbytes


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_says_what_the_live_teacher_says(workers: int) -> None:
    model = Causal()
    needs = Needs()
    with Frozen().open(copy.deepcopy(model), Factoring(), needs) as live:
        expected = [live(each) for each in batches(6)]
    with ProcessTeacher(workers=workers).open(model, Factoring(), needs) as teacher:
        tickets = [teacher.submit(each) for each in batches(6)]
        found = [teacher.result(each) for each in tickets]
        heads = {id(each.distribution.head) for each in found}
        assert 1 <= len(heads) <= workers, "each worker sends it once"
        assert isinstance(teacher(batches(1)[0]).distribution, Factored)
    for one, two in zip(found, expected):
        assert isinstance(one.distribution, Factored)
        assert torch.equal(one.logits, two.logits)
    with ProcessTeacher().open(model, Factoring(), DENSE) as teacher:
        assert isinstance(teacher(batches(1)[0]).distribution, Dense)


def desk(dtype: torch.dtype | None = None) -> _Desk:
    model = Causal()

    def answer(inputs: torch.Tensor, needs: Needs) -> Outputs:
        with torch.no_grad():
            found = Factoring().forward(SimpleNamespace(module=model), Batch({"teacher": inputs}), needs)
        if dtype is None or not isinstance(found.distribution, Factored):
            return found
        return replace(found, distribution=replace(found.distribution, dtype=dtype))

    return _Desk({"features": []}, answer, "", 1 << 20)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_server_gives_its_head_once(dtype: torch.dtype | None) -> None:
    server, asked = desk(dtype), list[str]()

    def fetch(name: str) -> Head:
        asked.append(name)
        return to_head(server.head(name))

    fetched = Fetched(fetch)
    for each in batches(3):
        ids = each.side("teacher")
        answer = to_outputs(server.outputs(from_inputs(ids, Needs())), fetched)
        plain = to_outputs(server.outputs(from_inputs(ids, DENSE)))
        assert isinstance(answer.distribution, Factored)
        assert answer.distribution.dtype == dtype
        assert isinstance(plain.distribution, Dense)
        if dtype is None:
            assert torch.equal(answer.logits, plain.logits)
    assert len(asked) == 1


def test_over_http_the_head_is_got_once() -> None:
    asked: list[str] = []

    class Handler(_Handler):
        desk = desk()

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    Handler.desk.info |= {"fingerprint": "f", "most_bytes": 1 << 20}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        client = Client(f"http://127.0.0.1:{server.server_port}")
        teacher = OverHttp(client, Handler.desk.info, Needs(), Factoring(), 2)
        try:
            found = [teacher.submit(each) for each in batches(4)]
            answers = [teacher.result(each) for each in found]
            with pytest.raises(DataError, match="no head has the fingerprint 'unknown'"):
                client.get("/v1/heads/unknown")
        finally:
            teacher.end()
            server.shutdown()
            thread.join()
    expected = Causal()
    for batch, each in zip(batches(4), answers):
        assert torch.equal(each.logits, expected(batch.side("teacher")))
    assert len(asked) == 2
    assert len({id(each.distribution.head) for each in answers}) == 1


def test_a_client_of_before_gets_logits_and_one_that_is_told_nothing_refuses() -> None:
    server = desk()
    old = from_inputs(batches(1)[0].side("teacher"), DENSE)
    assert b"forms" not in old
    assert isinstance(to_outputs(server.outputs(old)).distribution, Dense)
    body = server.outputs(from_inputs(batches(1)[0].side("teacher"), Needs()))
    with pytest.raises(DataError, match="hidden states, and nobody asked"):
        to_outputs(body)
    with pytest.raises(DataError, match="no head has the fingerprint 'x'"):
        server.head("x")
    wrong = Fetched(lambda name: Head(torch.zeros(CLASSES, WIDTH)))
    with pytest.raises(DataError, match="came with other numbers than were offered"):
        to_outputs(body, wrong)
    with pytest.raises(DataError, match="the answer says nothing of its head"):
        to_outputs(body.replace(b'fingerprint\\": \\"', b'fingerprint\\": \\"/')[: len(body)], wrong)
    with pytest.raises(DataError, match="expected weight"):
        to_head(from_outputs(Outputs(torch.ones(1, 2))))


def test_heads_with_a_bias_a_scale_and_a_cap_in_several_heads() -> None:
    offered = Offered()
    one = Head(torch.randn(4, 3), torch.randn(4), scale=0.5, softcap=2.0)
    two = Head(torch.randn(2, 3))
    outputs = Outputs(
        mask=torch.ones(2, dtype=torch.bool),
        heads={"a": Outputs(Factored(torch.randn(2, 3), one)), "b": Outputs(Factored(torch.randn(2, 3), two))},
    )
    fetched = Fetched(lambda name: to_head(from_head(offered.head(name))))
    found = to_outputs(from_outputs(outputs, offered), fetched)
    for name, each in outputs.heads.items():
        assert torch.equal(found.heads[name].logits, each.logits)
    assert torch.equal(to_outputs(from_outputs(outputs)).heads["a"].logits, outputs.heads["a"].logits)


def test_a_head_is_moved_to_the_device_once() -> None:
    moved, head = Moved(), Head(torch.ones(4, WIDTH))
    device = torch.device("meta")
    first, second = (moved(Outputs(Factored(torch.ones(2, WIDTH), head)), device) for _ in range(2))
    assert first.distribution.hidden.device == first.distribution.head.weight.device == device
    assert first.distribution.head is second.distribution.head
    assert moved(Outputs(torch.ones(2)), device).logits.device == device
