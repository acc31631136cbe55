"""Names on the hub: from its cache, from a server, and what is said where neither has them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from decoct.cli.teachers import find
from decoct.data.text_files import TextFiles
from decoct.errors import DataError, RecipeError
from decoct.models.hub import snapshot
from pretrained_toys import photos, reviews, sentiment, timm_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that is empty, and nobody to ask."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


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
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_what_is_in_the_cache_needs_no_network(revision: str | None, home: Path, tmp_path: Path) -> None:
    place = cached(home, "org/mine", sentiment(tmp_path / "mine"))
    assert snapshot("org/mine", revision) == (place, COMMIT)


def test_what_is_nowhere_is_told_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"'org/mine' is no folder here, is not in the cache.*hf download org/mine"):
        snapshot("org/mine")
    with pytest.raises(RecipeError, match=r"'\.\./etc/passwd' is no name of a repository"):
        snapshot("../etc/passwd")


def test_a_name_is_downloaded_at_the_commit_it_is_at(
    server: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = sentiment(tmp_path / "mine")
    server.files = {each.name: each.read_bytes() for each in mine.iterdir()} | {"run_me.py": b"1/0", "x.bin": b"pickle"}
    folder, commit = snapshot("org/mine")
    assert commit == COMMIT
    assert sorted(each.name for each in folder.iterdir()) == sorted(each.name for each in mine.iterdir())
    assert all((folder / each.name).read_bytes() == each.read_bytes() for each in mine.iterdir())
    server.files = {}  # of a commit that is here, nobody is asked
    assert snapshot("org/mine", COMMIT) == (folder, COMMIT)


def test_pickled_weights_are_not_downloaded(server: type[Hub], home: Path) -> None:
    server.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(DataError, match=r"repository org/mine holds no \*\.safetensors; its pytorch_model\.bin is a p"):
        snapshot("org/mine")
    assert not list(home.rglob("*.bin"))
    with pytest.raises(DataError, match="'org/other' is no folder here and no public repository on 127"):
        snapshot("org/other")


def test_a_first_recipe_names_the_commit(home: Path, tmp_path: Path) -> None:
    cached(home, "org/mine-sst-2", sentiment(tmp_path / "mine"))
    texts = TextFiles(path=reviews(tmp_path / "r.csv"), text="text", target="label").plain()
    found = find("org/mine-sst-2", "text_classification", texts)
    named = {"name": "org/mine-sst-2", "revision": COMMIT}
    assert found.model == {"use": "transformers", **named}
    assert found.ready
    assert found.task == {"teacher_tokenizer": {"use": "pretrained", **named}, "teacher_max_length": 64}

    cached(home, "timm/resnet10t.mine", timm_folder(tmp_path / "net"))
    images = {"use": "image_folder", "path": str(photos(tmp_path / "photos")), "size": 24}
    image = find("timm/resnet10t.mine", "image_classification", images)
    assert image.model == {"use": "timm", "name": "resnet10t.mine", "pretrained": True, "revision": COMMIT}
    assert (image.ready, image.size) == (True, 176)
    with pytest.raises(DataError, match="nothing is there"):
        find("./absent", "text_classification", texts)
