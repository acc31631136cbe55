import http.client
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from far_toys import WIDTH, source, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from decoct.artifact import Artifact, writing
from decoct.errors import DataError, IntegrityError, PathError, RecipeError, ResourceError
from decoct.models.black_box import BlackBox
from decoct.models.http_client import FINGERPRINT, Client
from decoct.models.mlp import MLP
from decoct.models.remote import Remote
from decoct.models.saving import save_model
from decoct.outputs import Batch, Needs, Outputs
from decoct.tasks.tabular_classification import TabularClassification
from decoct.teachers.frozen import Frozen
from decoct.teachers.remote import server as server_module
from decoct.teachers.remote.over_http import HttpTeacher
from decoct.teachers.remote.running_ahead import RunsAhead
from decoct.teachers.remote.server import teaching
from decoct.teachers.remote.tensors import from_inputs, from_outputs, to_inputs, to_outputs

NOTHING = Needs()
TASK = TabularClassification(classes=tuple("abcde"), shape=(WIDTH,), raw=True)


def artifact(folder, seed=0):
    """A teacher as a step leaves it."""
    spec, interface = MLP(hidden=(8,)), TASK.reading("teacher").interface
    torch.manual_seed(seed)
    net = spec.build(interface)
    with writing(folder, kind="model", name="a", meta={"side": "teacher"}) as draft:
        draft.write_json("task.json", TASK.plain())
        save_model(draft, net, spec, interface, side="teacher")
    return net


@contextmanager
def served(folder, port=0, **settings):
    with teaching(folder, port=port, **settings) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def url_of(server):
    return f"http://127.0.0.1:{server.server_port}"


def opened(url, needs=NOTHING, **settings):
    return HttpTeacher().open(Remote(url=url, **settings), TASK.reading("teacher"), needs)


def test_a_student_learns_what_the_live_teacher_would_have_taught(tmp_path):
    net = artifact(tmp_path / "a")
    needs = Needs(frozenset(name for name, _ in net.named_modules() if name))
    with Frozen().open(net, TASK.reading("teacher"), needs) as live:
        expected, told = trained(live, source(), 30)
        features = live(next(iter(source()))).features
    with served(tmp_path / "a") as server, opened(url_of(server), needs) as teacher:
        running = RunsAhead(source(), [teacher])
        found, asked = trained(teacher, running, 30)
        running.close()
        outputs = teacher(next(iter(source())))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(left, right) for (_, left), (_, right) in zip(asked, told, strict=True))
    assert set(outputs.features) == set(features)
    assert all(torch.equal(outputs.features[name], features[name]) for name in features)


def test_what_a_server_tells_of_its_teacher(tmp_path):
    artifact(tmp_path / "a")
    with served(tmp_path / "a") as server:
        remote = Remote(url_of(server))
        info = remote.info()
        assert info["classes"] == list("abcde")
        assert info["task"] == TASK.plain()
        assert info["fingerprint"] == remote.fingerprint() == Artifact.load(tmp_path / "a").hash
        with pytest.raises(RecipeError, match="cannot be trained"):
            remote.build(TASK.reading("student").interface)
        with (
            pytest.raises(PathError, match=r"has no module 'hiden'; did you mean"),
            opened(remote.url, Needs(frozenset({"hiden"}))),
        ):
            pass
        with pytest.raises(RecipeError, match="without gradients"):
            opened(remote.url, Needs(gradient=True))
    with pytest.raises(RecipeError, match="not dict"):
        HttpTeacher().open({}, TASK.reading("teacher"), NOTHING)
    with pytest.raises(RecipeError, match="write http://host:port"):
        Remote("localhost:8700").info()


class _Program:
    """A server in a process of its own, on a port that stays."""

    def __init__(self, folder):
        self.folder, self.port = folder, 0
        self.start()

    def start(self):
        code = "import sys; from decoct.teachers.remote.server import serve; serve(sys.argv[1], port=int(sys.argv[2]))"
        words = [sys.executable, "-c", code, str(self.folder), str(self.port)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.communicate(timeout=300)
        return self.process.returncode


def test_a_server_that_was_killed_and_started_again_is_asked_again(tmp_path):
    net = artifact(tmp_path / "a")
    with Frozen().open(net, TASK.reading("teacher"), NOTHING) as live:
        expected, _ = trained(live, source(), 40)
    program = _Program(tmp_path / "a")
    starting = []
    try:
        with opened(program.url, retries=12) as teacher:

            def killed(step):
                if step in (5, 25):
                    program.end()
                    starting.append(threading.Thread(target=program.start))
                    starting[-1].start()

            running = RunsAhead(source(), [teacher])
            found, _ = trained(teacher, running, 40, killed)
            running.close()
            assert teacher.counts.resent >= 2
    finally:
        for each in starting:
            each.join()
        assert program.end(signal.SIGINT) == 0
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_other_weights_behind_the_same_address_end_the_training(tmp_path):
    artifact(tmp_path / "a")
    artifact(tmp_path / "b", seed=1)
    batch = next(iter(source()))

    def learn(asks_again):
        with served(tmp_path / "a") as server:
            port = server.server_port
            context = opened(url_of(server))
            teacher = context.__enter__()
            teacher(batch)
        with served(tmp_path / "b", port):
            if asks_again:
                try:
                    teacher(batch)
                finally:
                    context.__exit__(*sys.exc_info())
            context.__exit__(None, None, None)

    for asks_again in (True, False):
        with pytest.raises(IntegrityError, match="changed while it taught"):
            learn(asks_again)


def test_without_the_token_nobody_is_answered(tmp_path, monkeypatch):
    artifact(tmp_path / "a")
    monkeypatch.setenv("DECOCT_SESAME", "right")
    with served(tmp_path / "a", token="DECOCT_SESAME") as server:
        monkeypatch.setenv("DECOCT_MINE", "wrong")
        monkeypatch.setenv("DECOCT_MINE_HOST", f"127.0.0.1:{server.server_port}")
        for token in ("", "DECOCT_MINE"):
            with (
                pytest.raises(ResourceError, match="status 401: it wants a token"),
                opened(url_of(server), token=token),
            ):
                pass
        monkeypatch.setenv("DECOCT_MINE", "right")
        with opened(url_of(server), token="DECOCT_MINE") as teacher:
            assert teacher(next(iter(source()))).logits.shape == (4, 5)
    monkeypatch.delenv("DECOCT_SESAME")
    with pytest.warns(UserWarning, match=r"anybody who reaches 0\.0\.0\.0"), teaching(tmp_path / "a", "0.0.0.0"):
        pass


def test_a_recipe_sends_no_other_secret_and_none_unencrypted(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    for made in (lambda **s: Remote(url="https://x.org", **s), lambda **s: BlackBox(url="https://x.org", **s)):
        with pytest.raises(RecipeError, match=r"token is 'HF_TOKEN'; allowed: names .* begin with DECOCT_"):
            made(token="HF_TOKEN")
    with pytest.raises(RecipeError, match="token is 'HF_TOKEN'"):
        Client("https://x.org", token="HF_TOKEN")
    monkeypatch.setenv("DECOCT_LAB", "secret")
    for host in ("teacher.invalid", "192.0.2.1", "[2001:db8::1]", "127.0.0.1.invalid"):
        monkeypatch.setenv("DECOCT_LAB_HOST", f"{host}:1")
        with pytest.raises(RecipeError, match="DECOCT_LAB would travel unencrypted"):
            Remote(url=f"http://{host}:1", token="DECOCT_LAB", retries=0).fingerprint()
    for host in ("127.0.0.1", "localhost"):
        monkeypatch.setenv("DECOCT_LAB_HOST", f"{host}:9")
        with pytest.raises(ResourceError, match="gave no answer"):
            Remote(url=f"http://{host}:9", token="DECOCT_LAB", retries=0).fingerprint()


class _Listening(BaseHTTPRequestHandler):
    """Keeps the headers of each request; sends it on where there is somewhere to."""

    heard: list[dict[str, str]]
    elsewhere = ""

    def do_GET(self):
        self.heard.append(dict(self.headers))
        self.send_response(302 if self.elsewhere else 200)
        if self.elsewhere:
            self.send_header("Location", self.elsewhere)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


def listening(elsewhere=""):
    kind = type("H", (_Listening,), {"heard": [], "elsewhere": elsewhere})
    return kind, answering(kind)


def test_a_token_goes_to_the_host_that_its_user_named_and_to_no_other(monkeypatch):
    monkeypatch.setenv("DECOCT_TOKEN", "secret")
    kind, server = listening()
    with server as url:
        for token, bound in (("", None), ("DECOCT_TOKEN", None), ("DECOCT_TOKEN", "example.org")):
            monkeypatch.delenv("DECOCT_TOKEN_HOST", raising=False)
            if bound is not None:
                monkeypatch.setenv("DECOCT_TOKEN_HOST", bound)
            for made in (Remote(url=url, token=token, retries=0).client(), Client(url, token=token)):
                if token:
                    with pytest.raises(RecipeError, match=r"DECOCT_TOKEN_HOST, which says who may have it, is"):
                        made.get("/")
                else:
                    made.get("/")
        assert all("Authorization" not in each for each in kind.heard)
        assert len(kind.heard) == 2
        place = url.removeprefix("http://")
        for bound in (place, f"example.org, {place.upper()}"):
            monkeypatch.setenv("DECOCT_TOKEN_HOST", bound)
            Client(url, token="DECOCT_TOKEN").get("/")
            assert kind.heard[-1]["Authorization"] == "Bearer secret"
        for bound in (place + "0", "127.0.0.1", f"localhost:{place.partition(':')[2]}", url):
            monkeypatch.setenv("DECOCT_TOKEN_HOST", bound)
            with pytest.raises(RecipeError, match="says who may have it"):
                Client(url, token="DECOCT_TOKEN").get("/")


def test_a_redirection_to_another_host_is_not_followed(monkeypatch):
    other, elsewhere = listening()
    monkeypatch.setenv("DECOCT_TOKEN", "secret")
    with elsewhere as there:
        kind, server = listening(there)
        with server as url:
            monkeypatch.setenv("DECOCT_TOKEN_HOST", url.removeprefix("http://"))
            client = Client(url, token="DECOCT_TOKEN")
            for ask in (lambda: client.get("/"), lambda: client.post("/", b"", "text/plain")):
                with pytest.raises(ResourceError, match="status 302"):
                    ask()
            assert len(kind.heard) == 2
    assert other.heard == []


@pytest.mark.parametrize("token", ["two words", "line\nend: x", "schlüssel"])
def test_a_token_that_is_no_header_is_refused(monkeypatch, token):
    monkeypatch.setenv("DECOCT_TOKEN", token)
    monkeypatch.setenv("DECOCT_TOKEN_HOST", "127.0.0.1:9")
    with pytest.raises(RecipeError, match="the token in DECOCT_TOKEN holds"):
        Client("http://127.0.0.1:9", token="DECOCT_TOKEN").get("/")


@pytest.mark.parametrize(
    "url",
    ["http://a:99999", "http://[::1", "http://a:b", "http://a b/", "http://ä.org", "http://a/\r\nX: y", "ftp://a", "a"]
    + ["http://:80", "http://me:hunter2@a.org", "http://me@a.org"],
)
def test_addresses_that_are_none_are_refused_at_once(url):
    with pytest.raises(RecipeError, match="url is ") as told:
        Remote(url=url, retries=0).fingerprint()
    assert "hunter2" not in str(told.value)


def test_headers_are_found_however_they_are_written():
    class Lower(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("x-decoct-fingerprint", "abc")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with answering(Lower) as url:
        assert Client(url).get("/").headers.get(FINGERPRINT) == "abc"


def test_errors_name_address_and_status(tmp_path, capsys):
    artifact(tmp_path / "a")
    with served(tmp_path / "a", most_bytes=2000) as server:
        url = url_of(server)
        with opened(url) as teacher:
            with pytest.raises(
                ResourceError, match=rf"{url}/v1/outputs answered with status 422: .*RuntimeError"
            ) as told:
                teacher(Batch({"teacher": torch.ones(2, WIDTH + 1)}))
            assert "mat1" not in str(told.value)
            assert "mat1 and mat2" in capsys.readouterr().err
            with pytest.raises(RecipeError, match="takes 2000; give it a smaller batch_size"):
                teacher(Batch({"teacher": torch.ones(200, WIDTH)}))
            with pytest.raises(RecipeError, match="takes tensors, and the inputs of this task hold list"):
                teacher(Batch({"teacher": {"text": ["a", "b"]}}))
            assert teacher.counts.resent == 0
        client = Client(url, retries=0)
        with pytest.raises(DataError, match=r"status 404: no GET /v2; GET /v1/teacher"):
            client.get("/v2")
        with pytest.raises(DataError, match=r"status 400: 5 bytes that are no safetensors"):
            client.post("/v1/outputs", b"12345", "")
        bare = http.client.HTTPConnection("127.0.0.1", server.server_port)
        bare.putrequest("POST", "/v1/outputs")
        bare.putheader("Content-Length", "3000")
        bare.endheaders()
        assert bare.getresponse().status == 413
        bare.close()
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=300) as raw:
            raw.sendall("POST /v1/outputs HTTP/1.1\r\nHost: a\r\nContent-Length: ²\r\n\r\n".encode("latin-1"))
            assert b" 411 " in raw.makefile("rb").readline()
    with pytest.raises(ResourceError, match=r"gave no answer in 2 tries, at last ConnectionRefusedError"):
        Client(url, retries=1).get("/v1/teacher")


def test_a_client_that_drips_bytes_loses_its_place(tmp_path, monkeypatch):
    artifact(tmp_path / "a")
    monkeypatch.setattr(server_module, "PATIENCE", 0.2)
    with served(tmp_path / "a") as server:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=300) as raw:
            raw.sendall(b"POST /v1/outputs HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
            answered = False
            for _ in range(900):
                raw.sendall(b"x")
                if answered := bool(select.select([raw], [], [], 0.02)[0]):
                    break
            assert answered
            assert b" 408 " in raw.makefile("rb").readline()
        with opened(url_of(server)) as teacher:
            assert teacher(next(iter(source()))).logits.shape == (4, 5)


class _Dripping(BaseHTTPRequestHandler):
    """Begins an answer and gives one byte of the rest now and then, for ever."""

    protocol_version = "HTTP/1.1"
    begin: bytes

    def do_GET(self):
        with suppress(OSError):
            self.wfile.write(self.begin)
            while not self.server.over:
                self.wfile.write(b"1")
                self.wfile.flush()
                time.sleep(0.02)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 ",
    ],
    ids=["body", "chunk", "close", "header", "status"],
)
def test_a_server_that_drips_bytes_has_its_time_and_no_more(begin):
    with ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Dripping,), {"begin": begin})) as server:
        server.over, server.daemon_threads = False, True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            client = Client(f"http://127.0.0.1:{server.server_port}", timeout=0.3, retries=1)
            with pytest.raises(ResourceError, match="in 2 tries, at last TimeoutError: the answer was not whole"):
                client.get("/")
        finally:
            server.over = True
            server.shutdown()
            thread.join()


def test_a_length_without_end_is_answered(tmp_path):
    artifact(tmp_path / "a")
    with served(tmp_path / "a") as server:
        for digits, status in ((b"9" * 5000, b" 413 "), (b"0" * 5000 + b"3", b" 413 "), (b"-1", b" 411 ")):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=300) as raw:
                raw.sendall(b"POST /v1/outputs HTTP/1.1\r\nHost: a\r\nContent-Length: " + digits + b"\r\n\r\n")
                assert status in raw.makefile("rb").readline()


class _Moody(BaseHTTPRequestHandler):
    """Fails with the statuses that stand in `moods`, then gives JSON."""

    moods: list[int]

    def do_GET(self):
        status = self.moods.pop(0) if self.moods else 200
        body = json.dumps({"left": len(self.moods)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def answering(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def moody(*moods):
    return answering(type("H", (_Moody,), {"moods": list(moods)}))


def test_errors_of_a_server_are_tried_again_and_those_of_a_client_are_not():
    with moody(503, 429, 500) as url:
        client = Client(url)
        assert client.get("/").status == 200
        assert client.resent == 3
    with moody(502, 502) as url, pytest.raises(ResourceError, match=rf"{url}/ gave no answer in 2 tries.*status 502"):
        Client(url, retries=1).get("/")
    with moody(400) as url, pytest.raises(ResourceError, match="status 400"):
        Client(url).get("/")
    with moody() as url, pytest.raises(ResourceError, match="more than 3 bytes"):
        Client(url, most_bytes=3).get("/")
    with moody() as url, pytest.raises(DataError, match="is no teacher's server"):
        Remote(url).info()


def test_stopping_ends_what_waits():
    client = Client("http://127.0.0.1:9", retries=1000)
    threading.Timer(0.3, client.stop).start()
    with pytest.raises(ResourceError, match="gave no answer"):
        client.get("/")

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(1)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        client = Client(f"http://127.0.0.1:{server.server_port}", retries=1000)
        threading.Timer(0.3, client.stop).start()
        with pytest.raises(ResourceError, match="gave no answer"):
            client.get("/")
        server.shutdown()
        thread.join()


TENSORS = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]).flatmap(
    lambda dtype: st.lists(st.integers(0, 4), max_size=3).map(lambda shape: torch.ones(shape).to(dtype))
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=5)
GROUP = st.dictionaries(NAMES, TENSORS, max_size=3)


@given(TENSORS | st.none(), TENSORS | st.none(), GROUP, GROUP, st.dictionaries(NAMES, TENSORS, max_size=2))
@settings(max_examples=50, deadline=None)
def test_outputs_come_back_from_their_bytes(logits, mask, values, features, heads):
    outputs = Outputs(logits, mask, values, features, {}, {name: Outputs(each) for name, each in heads.items()})
    again = to_outputs(from_outputs(outputs))
    for left, right in [(again.logits, logits), (again.mask, mask)]:
        assert (left is None) == (right is None)
        assert left is None or torch.equal(left, right)
    for left, right in [(again.values, values), (again.features, features)]:
        assert set(left) == set(right)
        assert all(torch.equal(left[name], right[name]) for name in right)
    assert {name: each.logits.shape for name, each in again.heads.items()} == {n: e.shape for n, e in heads.items()}


def test_strides_of_axes_of_length_1_are_kept_and_no_others_can_be_asked_for():
    for strides in ((36, 1, 6, 1), (36, 36, 6, 1), (36, 99, 6, 1)):
        grey = torch.randn(72).as_strided((2, 1, 6, 6), strides)
        again, _ = to_inputs(from_inputs({"x": grey}, NOTHING))
        assert again["x"].stride() == strides
        assert torch.equal(again["x"], grey)
    for strides in ([1, 1, 6, 1], [36, 1, 6], "text", [36, "a", 6, 1], [36, None, 6, 1]):
        body = save(
            {"input": grey.contiguous()}, {"needs": json.dumps({"features": [], "strides": {"input": strides}})}
        )
        with pytest.raises(DataError, match="says nothing of what it needs"):
            to_inputs(body)
    body = save(
        {"input": grey.contiguous()}, {"needs": json.dumps({"features": [], "strides": {"input": [36, -5, 6, 1]}})}
    )
    assert torch.equal(to_inputs(body)[0], grey)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_other_bytes_are_refused(body):
    for read in (to_inputs, to_outputs):
        with suppress(DataError):
            read(body)
    request = bytearray(from_inputs(torch.ones(3), NOTHING))
    for place, value in enumerate(body[: len(request)]):
        request[place] = value
    with suppress(DataError):
        to_inputs(bytes(request))


def test_an_answer_of_exactly_the_most_bytes_is_taken_and_every_try_is_made():
    length = len(json.dumps({"left": 0}))
    with moody() as url:
        assert len(Client(url, most_bytes=length).get("/").body) == length
        with pytest.raises(ResourceError, match=f"more than {length - 1} bytes"):
            Client(url, most_bytes=length - 1).get("/")
    for retries, tries in ((0, 1), (2, 3)):
        busy = type("H", (_Moody,), {"moods": [500] * 5})
        with answering(busy) as url, pytest.raises(ResourceError, match=f"in {tries} tries, at last status 500"):
            Client(url, retries=retries).get("/")
        assert len(busy.moods) == 5 - tries


DEEP = "[" * 100_000
FACTS = {"decoct": "1", "side": "teacher", "classes": [], "fingerprint": "f", "features": [], "most_bytes": 99}


@pytest.mark.parametrize(
    "body",
    ["", "[]", "null", DEEP, "[" * 500 + "]" * 500, "1" * 5000, '"\\ud800"', "{}"]
    + [json.dumps({**FACTS, "task": task}) for task in (None, [], {}, {"use": 1})]
    + [json.dumps({**FACTS, "task": {"use": "regression"}, name: []}) for name in ("decoct", "side", "most_bytes")]
    + [json.dumps({**FACTS, "task": {"use": "regression"}, "features": {"a": 1}})],
    ids=lambda body: body[-30:],
)
def test_what_is_no_teacher_is_said_so(body):
    class Saying(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    with answering(Saying) as url, pytest.raises(DataError, match="is no teacher's server"):
        Remote(url).info()


@pytest.mark.parametrize(
    "needs",
    [DEEP, '{"features": [], "strides": {"input": [Infinity]}}', "1" * 5000, '{"features": [], "strides": {"a": [1]}}'],
    ids=lambda needs: needs[-20:],
)
def test_requests_that_say_nonsense_of_their_needs_are_refused(needs):
    with pytest.raises(DataError):
        to_inputs(save({"input": torch.ones(1)}, {"needs": needs}))


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"hidden": torch.ones(1, 2)}, {"factored": DEEP}),
        ({"hidden": torch.ones(1, 2)}, {"factored": '{"": {"fingerprint": "' + "a" * 64 + '", "scale": 1' + "0" * 400}),
        ({"heads/a/" * 2000 + "logits": torch.ones(1)}, None),
    ],
)
def test_answers_that_say_nonsense_of_their_heads_are_refused(tensors, metadata):
    with pytest.raises(DataError):
        to_outputs(save(tensors, metadata))


@pytest.mark.parametrize(
    "logits", [torch.ones(3, 5), torch.ones(4, 5, dtype=torch.int64), torch.ones(4), torch.tensor(1.0)], ids=str
)
def test_numbers_that_answer_no_question_are_refused(tmp_path, logits):
    artifact(tmp_path / "a")
    with served(tmp_path / "a") as server, opened(url_of(server)) as teacher:
        teacher._client.post = lambda *_: type(
            "R", (), {"headers": {FINGERPRINT: teacher._info["fingerprint"]}, "body": save({"logits": logits})}
        )
        with pytest.raises(DataError, match="for 4 samples"):
            teacher(next(iter(source())))
