"""Artifacts: whole or not at all, and every flipped bit is found."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoct.artifact import MANIFEST, Artifact, damaged, move_into_place, sha256, write_tensors, write_whole, writing
from decoct.errors import IntegrityError, ResourceError


def make(folder: Path, text: str = "hello") -> Artifact:
    with writing(folder, kind="records", name="one", key="k", lineage={"model": "abc"}, meta={"side": "student"}) as d:
        (d.folder / "sub").mkdir()
        (d.folder / "sub" / "a.txt").write_text(text)
        d.write_json("b.json", {"x": [1, 2]})
        d.scores["accuracy"] = 0.5
        d.meta[3] = "three"  # type: ignore[index]
    return Artifact.load(folder)


def test_round_trip(tmp_path: Path) -> None:
    artifact = make(tmp_path / "one")
    assert artifact.kind == "records"
    assert artifact.scores == {"accuracy": 0.5}
    assert artifact.meta == {"side": "student", "3": "three"}
    assert artifact.lineage == {"model": "abc"}
    assert artifact.json("b.json") == {"x": [1, 2]}
    assert sha256(artifact.file("sub/a.txt")) == hashlib.sha256(b"hello").hexdigest()
    assert artifact.hash == make(tmp_path / "two").hash != make(tmp_path / "three", "other").hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Also those of the manifest itself."""
    make(tmp_path / "one")
    for name in ("sub/a.txt", "b.json", MANIFEST):
        path = tmp_path / "one" / name
        whole = path.read_bytes()
        for position in range(0, len(whole), 7):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            if name == MANIFEST and flipped.split() == whole.split():
                continue
            with pytest.raises(IntegrityError):
                Artifact.load(tmp_path / "one")
        path.write_bytes(whole)
    Artifact.load(tmp_path / "one")


@pytest.mark.parametrize("change", ["missing", "shorter", "damaged", "added"])
def test_damage_is_named(tmp_path: Path, change: str) -> None:
    folder = make(tmp_path / "one").folder
    file = folder / "sub" / "a.txt"
    if change == "missing":
        file.unlink()
    elif change == "added":
        (folder / "c.txt").write_text("")
    else:
        file.write_text("hell" if change == "shorter" else "hellO")
    words = {"missing": "sub/a.txt is missing", "shorter": "4 bytes, 5", "damaged": "is damaged", "added": "c.txt was"}
    assert words[change] in damaged(folder)[0]
    with pytest.raises(IntegrityError, match=words[change]):
        Artifact.load(folder)
    Artifact.load(folder, verify=False)


def test_an_exception_leaves_what_stood_there(tmp_path: Path) -> None:
    make(tmp_path / "one")

    def interrupted() -> None:
        with writing(tmp_path / "one", kind="records", name="one") as draft:
            (draft.folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Artifact.load(tmp_path / "one").json("b.json") == {"x": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_second_artifact_replaces_the_first(tmp_path: Path) -> None:
    make(tmp_path / "one")
    assert make(tmp_path / "one", "new").file("sub/a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_no_artifact_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(IntegrityError, match="no whole artifact"):
            Artifact.load(folder)
    with pytest.raises(IntegrityError, match="missing"):
        make(tmp_path / "one").file("absent.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_lack_of_resources(tmp_path: Path) -> None:
    def fill_up() -> None:
        with writing(tmp_path / "one", kind="data", name="x") as draft:
            os.symlink("/dev/full", draft.folder / "x")
            (draft.folder / "x").write_bytes(b"x")

    with pytest.raises(ResourceError, match="no space left"):
        fill_up()
    os.symlink("/dev/full", tmp_path / ".y.writing")
    with pytest.raises(ResourceError, match="no space left"):
        write_whole(tmp_path / "y", b"text")
    assert list(tmp_path.iterdir()) == []


def test_other_failures_keep_their_own_error(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, writing(tmp_path / "one", kind="data", name="x"):
        raise OSError(errno.EACCES, "no")
    assert caught.value.errno == errno.EACCES


@given(st.binary(max_size=300))
@settings(max_examples=25, deadline=None)
def test_write_whole_writes_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("whole") / "deep" / "file"
    write_whole(path, b"before")
    write_whole(path, content)
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_rename_that_fails_puts_back_what_stood_there(tmp_path: Path) -> None:
    make(tmp_path / "one")
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "absent", tmp_path / "one")
    assert Artifact.load(tmp_path / "one").json("b.json") == {"x": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_a_killed_process_left_beside_an_artifact_is_in_nobody_s_way(tmp_path: Path) -> None:
    """Killed while it wrote, and killed between the two renames."""
    make(tmp_path / "one")
    for name in (".one.writing", ".one.old"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "left").write_text("x")
    artifact = make(tmp_path / "one", "new")
    assert artifact.file("sub/a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_log_is_no_part_of_what_an_artifact_is(tmp_path: Path) -> None:
    """It holds times, which differ from run to run; any other file counts."""

    def hash_of(name: str, text: str) -> str:
        with writing(tmp_path / "one", kind="records", name="one") as draft:
            (draft.folder / name).write_text(text)
        return Artifact.load(tmp_path / "one").hash

    assert hash_of("log.jsonl", "1 s") == hash_of("log.jsonl", "2 s")
    assert hash_of("log.json", "1 s") != hash_of("log.json", "2 s")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_where_and_how_much(tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / ".y.writing")
    with pytest.raises(ResourceError, match=r"/y: no space left on the disk; 1\.5 kB are needed, and .* free"):
        write_whole(tmp_path / "y", bytes(1500))


def test_files_larger_than_allowed_are_a_full_disk_whoever_writes_them(tmp_path: Path) -> None:
    """A limit on the size of files, below which the library stops half-way, each with an error of its own."""
    script = """
import io, resource, signal, sys
import numpy as np, torch
from pathlib import Path
from decoct.artifact import write_tensors, write_whole, writing
from decoct.errors import ResourceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
big = np.zeros(100_000)
ways = {
    "numpy": lambda folder: np.save(folder / "x.npy", big),
    "tensors": lambda folder: write_tensors(folder / "x", {"x": torch.from_numpy(big)}),
    "whole": lambda folder: write_whole(folder / "x", big.tobytes()),
    "text": lambda folder: (folder / "x").write_text("x" * 100_000),
}
for name, way in ways.items():
    try:
        with writing(Path(sys.argv[1]) / name, kind="data", name=name) as draft:
            way(draft.folder)
    except ResourceError as error:
        print(name, "no space left" in str(error), "are needed" in str(error))
print(sorted(each.name for each in Path(sys.argv[1]).iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [*(f"{name} True True" for name in ("numpy", "tensors", "whole", "text")), "[]"]


def test_what_else_a_tensor_file_cannot_be_written_for_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_tensors(tmp_path / "absent" / "x", {"x": torch.zeros(1)})
