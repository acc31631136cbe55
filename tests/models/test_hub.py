"""Names on the hub: from its cache, from a server, and what is said where neither has them."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pretrained_toys import sentiment, timm_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import sys
from decoct.errors import DecoctError
from decoct.models.hub import snapshot
try:
    found = snapshot(sys.argv[1], *sys.argv[2:])
    print(found[1], sorted(each.name for each in found[0].iterdir()))
except DecoctError as error:
    print(type(error).__name__, error)
"""


def asked(home: Path, *words: str, **more: str) -> str:
    """What a process of its own says, since the hub's library reads its settings once."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *words], env={**here, "HF_HOME": str(home), **more}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def cached(home: Path, name: str, folder: Path) -> Path:
    """A folder in the hub's cache, as a download leaves it."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots").mkdir()
    found = place / "snapshots" / COMMIT
    folder.rename(found)
    return found


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/mine"):
            names = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0"} for n, b in self.files.items()]
            info = {"id": "org/mine", "sha": COMMIT, "siblings": names}
            self.answer(json.dumps(tree if "/tree/" in self.path else info).encode())
        elif self.path.startswith("/org/mine/resolve/") and self.path.rpartition("/")[2] in self.files:
            self.answer(self.files[self.path.rpartition("/")[2]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *what: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    cached(tmp_path, "org/mine", sentiment(tmp_path / "mine"))
    for words in (("org/mine",), ("org/mine", COMMIT)):
        found = asked(tmp_path, *words, HF_HUB_OFFLINE="1")
        assert found.startswith(COMMIT)
        assert "model.safetensors" in found


def test_what_is_nowhere_is_told_with_what_to_do(tmp_path: Path) -> None:
    said = asked(tmp_path, "org/mine", HF_HUB_OFFLINE="1")
    assert said.startswith("DataError the model 'org/mine' is no folder here")
    assert "hf download org/mine" in said
    assert asked(tmp_path, "../etc/passwd").startswith("RecipeError name: '../etc/passwd' is no name of a repository")


def test_a_name_is_downloaded_at_the_commit_it_is_at(tmp_path: Path, endpoint: str) -> None:
    mine = sentiment(tmp_path / "mine")
    Hub.files = {each.name: each.read_bytes() for each in mine.iterdir()} | {"run_me.py": b"1/0", "x.bin": b"pickle"}
    found = asked(tmp_path / "home", "org/mine", HF_ENDPOINT=endpoint)
    assert found.startswith(COMMIT), found
    assert "model.safetensors" in found
    assert "run_me.py" not in found
    assert "x.bin" not in found
    again = asked(tmp_path / "home", "org/mine", COMMIT, HF_ENDPOINT="http://127.0.0.1:9")
    assert again == found  # of a commit that is there, nobody is asked


def test_pickled_weights_are_not_downloaded(tmp_path: Path, endpoint: str) -> None:
    Hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    said = asked(tmp_path, "org/mine", HF_ENDPOINT=endpoint)
    assert said.startswith("DataError the repository org/mine holds no *.safetensors; its pytorch_model.bin is a pick")
    assert asked(tmp_path, "org/other", HF_ENDPOINT=endpoint).startswith("DataError 'org/other' is no folder here")


def test_a_first_recipe_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from decoct.cli.teachers import find
    from decoct.data.text_files import TextFiles
    from decoct.errors import DataError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    from pretrained_toys import photos, reviews

    cached(tmp_path, "org/mine-sst-2", sentiment(tmp_path / "mine"))
    texts = TextFiles(path=reviews(tmp_path / "r.csv"), text="text", target="label").plain()
    found = find("org/mine-sst-2", "text_classification", texts)
    named = {"name": "org/mine-sst-2", "revision": COMMIT}
    assert found.model == {"use": "transformers", **named}
    assert found.ready
    assert found.task == {"teacher_tokenizer": {"use": "pretrained", **named}, "teacher_max_length": 64}

    cached(tmp_path, "timm/resnet10t.mine", timm_folder(tmp_path / "net"))
    images = {"use": "image_folder", "path": str(photos(tmp_path / "photos")), "size": 24}
    image = find("timm/resnet10t.mine", "image_classification", images)
    assert image.model == {"use": "timm", "name": "resnet10t.mine", "pretrained": True, "revision": COMMIT}
    assert (image.ready, image.size) == (True, 176)
    with pytest.raises(DataError, match="nothing is there"):
        find("./absent", "text_classification", texts)
