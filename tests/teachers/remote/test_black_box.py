import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from far_toys import WIDTH, source, trained
from hypothesis import given
from hypothesis import strategies as st

from decoct.errors import DataError, RecipeError, ResourceError
from decoct.outputs import Batch, Needs, Outputs
from decoct.tasks.regression import Regression
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.remote.black_box import BlackBox, BlackBoxTeacher, class_ids, named_logits
from decoct.teachers.remote.running_ahead import RunsAhead

NAMES = ("Ada", "bob", "cat", "Dog", "5")
TASK = TabularClassification(classes=NAMES, shape=(WIDTH,), raw=True)
NOTHING = Needs()


def rows(batch):
    return list(batch.side("student").numpy())


def names(samples):
    return [NAMES[int(np.argmax(each[:5]))] for each in samples]


def opened(ask, **settings):
    return BlackBoxTeacher(**settings).open(BlackBox(ask, rows), TASK.reading("teacher"), NOTHING)


def expected(batch, confidence):
    """The definition, in NumPy float64."""
    best = batch.side("student").numpy()[:, :5].argmax(1)
    found = np.full((len(best), 5), (1 - confidence) / 4)
    found[np.arange(len(best)), best] = confidence
    return found


def test_the_named_class_gets_the_confidence_and_the_others_share_the_rest():
    batch = next(iter(source()))
    for ask in (
        names,
        lambda r: [np.int64(NAMES.index(each)) for each in names(r)],
        lambda r: map(str.upper, names(r)),
    ):
        with opened(ask, confidence=0.7) as teacher:
            outputs = teacher(batch).logits.double().softmax(-1).numpy()
            np.testing.assert_allclose(outputs, expected(batch, 0.7), atol=1e-6)
            assert teacher.unknown == 0


@given(st.lists(st.none() | st.integers(0, 3), max_size=6), st.integers(4, 9), st.floats(0.01, 0.99))
def test_logits_are_log_probabilities(ids, classes, confidence):
    logits = named_logits(ids, classes, confidence).double()
    for row, found in zip(logits, ids):
        p = row.softmax(-1)
        if found is None:
            assert torch.allclose(p, torch.full_like(p, 1 / classes))
        else:
            assert abs(p[found].item() - confidence) < 1e-6
            assert torch.allclose(row.exp().sum(), torch.tensor(1.0).double(), atol=1e-5)


def test_names_are_exact_first_and_then_without_case():
    assert class_ids(["a", "A", "b ", "B", True, 1.0, -1, None, ""], ["A", "a", "b", "B"]) == [
        *(1, 0, 2, 3),
        *(None, None, None, None, None),
    ]


def test_what_is_no_class_is_refused_or_taken_as_even_and_counted():
    batch = next(iter(source()))

    def odd(samples):
        return ["I do not know", *names(samples)[1:]]

    with opened(odd) as teacher, pytest.raises(DataError, match=r"answered 'I do not know', which is no class"):
        teacher(batch)
    with opened(odd, unknown="uniform") as teacher:
        outputs = teacher(batch).logits.softmax(-1)
        assert torch.allclose(outputs[0], torch.full((5,), 0.2))
        np.testing.assert_allclose(outputs[1:].numpy(), expected(batch, 0.9)[1:], atol=1e-6)
        assert teacher.unknown == 1
    with opened(lambda samples: ["Ada"]) as teacher, pytest.raises(DataError, match="1 labels for 4 samples"):
        teacher(batch)


def test_a_function_that_fails_is_asked_again_and_ahead_of_the_student():
    failures = [OSError("busy")] * 2
    threads = set()

    def flaky(samples):
        threads.add(threading.current_thread().name)
        if failures:
            raise failures.pop()
        return names(samples)

    def live(batch):
        return Outputs(torch.from_numpy(expected(batch, 0.9)).log().float())

    told, _ = trained(live, source(), 20)
    with opened(flaky) as teacher:
        running = RunsAhead(source(), [teacher])
        found, asked = trained(teacher, running, 20)
        running.close()
    assert teacher.counts.resent == 2
    assert len(threads) == 1
    assert len(asked) == 20
    assert all(torch.allclose(found[name], told[name], atol=1e-5) for name in told)
    failures += [OSError("busy")] * 2
    with opened(flaky, retries=1) as teacher, pytest.raises(ResourceError, match="failed 2 times, at last: busy"):
        teacher(next(iter(source())))


class _Namer(BaseHTTPRequestHandler):
    """Answers as such a service does; fails first, as often as `failures` says."""

    failures: list[int]
    key: str

    def do_POST(self):
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        status, outputs = 200, {self.key: names(inputs)}
        if self.failures:
            status, outputs = self.failures.pop(), {}
        body = json.dumps(outputs).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def service(*failures, key="labels"):
    handler = type("H", (_Namer,), {"failures": list(failures), "key": key})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/classify"
        server.shutdown()
        thread.join()


def test_a_service_is_asked_over_http():
    batch = next(iter(source()))
    with service(503) as url, opened(url) as teacher:
        np.testing.assert_allclose(teacher(batch).logits.softmax(-1).numpy(), expected(batch, 0.9), atol=1e-6)
        assert teacher.counts.resent == 1
    with service(key="answers") as url, opened(url) as teacher, pytest.raises(DataError, match="answered no"):
        teacher(batch)


def test_what_cannot_name_classes_is_refused():
    with pytest.raises(RecipeError, match="not function"):
        BlackBoxTeacher().open(names, TASK.reading("teacher"), NOTHING)
    with pytest.raises(RecipeError, match="has 0 that have names"):
        BlackBoxTeacher().open(BlackBox(names, rows), Regression().reading("teacher"), NOTHING)
    with pytest.raises(RecipeError, match=r"confidence is 0\.2; above 1/5"):
        opened(names, confidence=0.2)
    with pytest.raises(RecipeError, match="a term asks for features"):
        BlackBoxTeacher().open(BlackBox(names, rows), TASK.reading("teacher"), Needs(frozenset({"a"})))
    with (
        opened("http://127.0.0.1:9/", retries=0) as teacher,
        pytest.raises(RecipeError, match="cannot be written as JSON"),
    ):
        teacher(Batch({"student": torch.full((1, WIDTH), float("nan"))}))
