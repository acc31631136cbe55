"""Stores: sealed whole, found by what a sample looks like, damage found before a row of it is used."""

import hashlib
import json
import multiprocessing
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_toy import logits_of, make_store, seen_of, write_work

from decoct.artifact import Artifact, writing
from decoct.errors import DataError, IntegrityError
from decoct.outputs import Outputs
from decoct.store import reading
from decoct.store.codecs.base import Codec
from decoct.store.codecs.dense import DenseCodec
from decoct.store.codecs.top_k import TopKCodec
from decoct.store.finish import damaged_shards, salvage, seal
from decoct.store.layout import Layout
from decoct.store.reading import Store
from decoct.store.shards import finished, map_shard, shard_name, shard_of, write_shard


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("verify", ["all", "lazy", "index", "none"])
def test_every_way_of_reading_gives_the_same(tmp_path: Path, cache_bytes: int, shards: int, verify: str) -> None:
    folder = make_store(tmp_path, shards=shards)
    store = Store.open(folder, verify=verify, cache_bytes=cache_bytes)  # type: ignore[arg-type]
    assert len(store) == 60
    assert store.meta == {"teacher": "abc"}
    chosen = [59, 3, 3, 0, 31, 17]
    found = store.read(seen_of(chosen))
    assert found.logits is not None
    assert torch.equal(found.logits, logits_of(chosen, 7))
    found.logits.add_(1)
    again = store.read(torch.from_numpy(seen_of(chosen))).logits
    assert again is not None
    assert torch.equal(again, logits_of(chosen, 7))
    assert (store.seen[store.find(seen_of(chosen))] == seen_of(chosen)).all()
    empty = store.read(seen_of([])).logits
    assert empty is not None
    assert empty.shape == (0, 7)


@pytest.mark.parametrize(
    "codec", [DenseCodec(), DenseCodec(dtype="uint8"), TopKCodec(3), TopKCodec(3, tail="sample", draws=2)]
)
def test_codecs_in_a_store(tmp_path: Path, codec: Codec) -> None:
    """What is read is what the codec alone decodes, from one shard, from several and from the cache."""
    folder = make_store(tmp_path, classes=30, codec=codec)
    chosen = [5, 44, 20, 21]
    expected = codec.decode(codec.encode(logits_of(chosen, 30), seen_of(chosen)), 30)
    for cache_bytes in (0, 2**20):
        found = Store.open(folder, cache_bytes=cache_bytes).read(seen_of(chosen))
        if isinstance(expected, torch.Tensor):
            assert found.logits is not None
            assert torch.equal(found.logits, expected)
            continue
        assert found.top is not None
        for name in ("ids", "log_probs", "rest", "drawn", "drawn_log_probs"):
            ours, theirs = getattr(found.top, name), getattr(expected, name)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path))
    wanted = seen_of([1, 100, 2, 101])
    assert store.contains(wanted).tolist() == [True, False, True, False]
    with pytest.raises(DataError, match=rf"2 of 4 samples \({int(wanted[1]):#018x}"):
        store.read(wanted)
    with writing(tmp_path / "other", kind="model", name="x"):
        pass
    with pytest.raises(DataError, match="holds no store"):
        Store.open(tmp_path / "other")


def test_statistics_and_equal_rows(tmp_path: Path) -> None:
    """Equal rows of several shards count once; the same with another key is refused."""
    work = tmp_path / "work"
    layout = write_work(work, 10, 4, 2, DenseCodec())
    again = layout.encode(Outputs(logits_of([3, 50], 4)), seen=seen_of([3, 50]), keys=[3, 50], views=[0, 0])
    write_shard(work / shard_name(2), again, layout)
    with writing(tmp_path / "store", kind="store", name="x") as draft:
        statistics = seal(draft, work, finished(work), {})
    store = Store.open(tmp_path / "store")
    assert len(store) == statistics["rows"] == 11
    assert statistics["dropped"] == 1
    assert statistics["kept_mass"] == 1.0
    assert 0 <= statistics["kl"] < 1e-6
    files = (tmp_path / "store").rglob("*.arrow")
    assert statistics["bytes"] == sum(path.stat().st_size for path in files)
    assert dict(store.statistics) == statistics
    unlike = layout.encode(Outputs(logits_of([3], 4)), seen=seen_of([3]), keys=[4], views=[0])
    write_shard(work / shard_name(3), unlike, layout)
    with (
        pytest.raises(DataError, match="unlike key"),
        writing(tmp_path / "store", kind="store", name="x") as draft,
    ):
        seal(draft, work, finished(work), {})
    assert len(Store.open(tmp_path / "store")) == 11


def test_shards_of_two_layouts_make_no_store(tmp_path: Path) -> None:
    write_work(tmp_path / "work", 10, 4, 2)
    layout = Layout.of(Outputs(logits_of([0], 5)))
    rows = layout.encode(Outputs(logits_of([77], 5)), seen=seen_of([77]), keys=0)
    write_shard(tmp_path / "work" / shard_name(2), rows, layout)
    for shards, match in ((finished(tmp_path / "work"), "several layouts"), ({}, "no shards")):
        with pytest.raises(DataError, match=match), writing(tmp_path / "s", kind="store", name="x") as draft:
            seal(draft, tmp_path / "work", shards, {})


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    """A continued run ends in the bytes of one that was never stopped."""
    one, two = (Artifact.load(make_store(tmp_path / name)).hash for name in ("a", "b"))
    assert one == two


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: chance.randrange(len(content))])


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def swap(path: Path, chance: random.Random) -> None:
    other = chance.choice([each for each in path.parent.glob("*.arrow") if each != path])
    between = path.with_suffix(".swap")
    path.rename(between)
    other.rename(path)
    between.rename(other)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, flip, truncate, remove, swap)


@pytest.mark.parametrize("damage", range(200))
def test_a_damaged_shard_is_found_and_never_used(tmp_path_factory: pytest.TempPathFactory, damage: int) -> None:
    """One of 8 shards (two where they are swapped), at a random place, in one of five ways."""
    chance = random.Random(damage)
    whole = pristine(tmp_path_factory)
    folder = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(whole, folder)
    hurt = chance.randrange(8)
    before = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    DAMAGES[damage % len(DAMAGES)](folder / "shards" / shard_name(hurt), chance)
    now = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    wrong = sorted(name for name in before if before[name] != now.get(name))
    assert wrong
    assert damaged_shards(folder) == [int(name[:5]) for name in wrong]
    with pytest.raises(IntegrityError, match="run the label step again") as caught:
        Store.open(folder)
    assert all(f"shards/{name}" in str(caught.value) for name in wrong)
    store = Store.open(folder, verify="lazy", cache_bytes=0)
    for number in range(8):
        samples = range(number * 5, number * 5 + 5)
        if shard_name(number) in wrong:
            with pytest.raises(IntegrityError, match=f"shards/{shard_name(number)}.*run the label step again"):
                store.read(seen_of(samples))
        else:
            found = store.read(seen_of(samples)).logits
            assert found is not None
            assert torch.equal(found, logits_of(samples, 7))
    with pytest.raises(IntegrityError) as caught:
        store.read(seen_of(range(40)))
    assert all(f"shards/{name}" in str(caught.value) for name in wrong)
    shutil.rmtree(folder)


def pristine(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "pristine"
    return folder / "store" if folder.exists() else make_store(folder, count=40, shards=8)


def test_a_small_store_is_checked_whole_before_it_is_kept_in_memory(tmp_path: Path) -> None:
    folder = make_store(tmp_path)
    for number in (2, 3):
        flip(folder / "shards" / shard_name(number), random.Random(number))
    store = Store.open(folder, verify="lazy")
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"00002\.arrow is damaged.*00003\.arrow is damaged"):
            store.read(seen_of([0]))


def _write_on(work: Path) -> None:
    layout = write_work(work, 2, 4, 1)
    for number in range(1, 100_000):
        rows = layout.encode(Outputs(logits_of(range(5), 4)), seen=seen_of(range(5)), keys=number)
        write_shard(work / shard_name(number), rows, layout)


def test_killed_while_writing(tmp_path: Path) -> None:
    """25 kills at random times: what is found is whole, without gaps, and nothing else is left."""
    context = multiprocessing.get_context("fork")
    chance = random.Random(0)
    total = 0
    for trial in range(25):
        work = tmp_path / str(trial)
        worker = context.Process(target=_write_on, args=(work,))
        worker.start()
        worker.join(0.02 + 0.1 * chance.random())
        assert worker.is_alive()
        worker.kill()
        worker.join()
        found = finished(work)
        assert sorted(found) == list(range(len(found)))
        total += len(found)
        left = {path.name for path in work.iterdir()} if work.exists() else set()
        assert left == {name for number in found for name in (shard_name(number), f"{number:05d}.json")}
    assert total > 25


@pytest.mark.parametrize("name", ["index.arrow", "store.json", "manifest.json"])
def test_a_damaged_table_is_found(tmp_path: Path, name: str) -> None:
    folder = make_store(tmp_path)
    flip(folder / name, random.Random(1))
    for verify in ("all", "lazy", "index"):
        with pytest.raises(IntegrityError, match=name):
            Store.open(folder, verify=verify)  # type: ignore[arg-type]


def test_repair_recomputes_damaged_shards_alone(tmp_path: Path) -> None:
    folder, work = make_store(tmp_path), tmp_path / "again"
    before = Artifact.load(folder).hash
    for number in (1, 3):
        flip(folder / "shards" / shard_name(number), random.Random(number))
    assert salvage(folder, work).keys() == finished(work).keys() == {0, 2}
    layout = Store.open(folder, verify="index").layout
    for number in (1, 3):
        part = np.array_split(np.arange(60), 4)[number]
        rows = layout.encode(Outputs(logits_of(part, 7)), seen=seen_of(part), keys=part, views=number)
        write_shard(work / shard_name(number), rows, layout)
    with writing(folder, kind="store", name="labels") as draft:
        seal(draft, work, finished(work), {"teacher": "abc"})
    assert Artifact.load(folder).hash == before
    (folder / "manifest.json").unlink()
    assert salvage(folder, tmp_path / "third") == {}


@pytest.mark.parametrize("half", ["temporary", "no record", "short", "flipped", "record", "another's record", "text"])
def test_shards_of_a_killed_run(tmp_path: Path, half: str) -> None:
    """What a kill leaves is not taken for a shard, and is gone after; the others stay."""
    write_work(tmp_path, 20, 4, 3)
    assert finished(tmp_path / "absent") == {}
    shard, record = tmp_path / shard_name(1), tmp_path / "00001.json"
    content = shard.read_bytes()
    if half == "temporary":
        shard.rename(tmp_path / f".{shard.name}.writing")
    elif half == "no record":
        record.unlink()
    elif half == "short":
        shard.write_bytes(content[:-9])
    elif half == "flipped":
        flip(shard, random.Random(0))
    elif half == "record":
        record.write_text(record.read_text()[:20])
    elif half == "another's record":
        record.write_text((tmp_path / "00000.json").read_text())
    else:
        record.write_text(json.dumps({"file": "x"}))
    assert finished(tmp_path).keys() == {0, 2}
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        *("00000.arrow", "00000.json", "00002.arrow", "00002.json"),
    ]


def test_a_file_that_lies_about_its_columns_is_refused(tmp_path: Path) -> None:
    layout = write_work(tmp_path, 20, 4, 2)
    other = Layout.of(Outputs(logits_of([0], 5)))
    with pytest.raises(IntegrityError, match="other columns"):
        map_shard(tmp_path / shard_name(0), other)
    (tmp_path / "x.arrow").write_bytes(b"ARROW1" + bytes(100))
    with pytest.raises(IntegrityError, match="no Arrow file"):
        map_shard(tmp_path / "x.arrow", layout)
    (tmp_path / "y.arrow").write_bytes(b"")
    with pytest.raises(IntegrityError, match="no Arrow file"):
        map_shard(tmp_path / "y.arrow", layout)


@pytest.mark.parametrize("ragged", [False, True])
def test_any_flipped_bit_is_refused_or_harmless(tmp_path: Path, ragged: bool) -> None:
    """Also where no checksum is looked at: nothing but IntegrityError, and no view leaves the file."""
    outputs = Outputs(torch.randn(4, 3), features={"a": torch.randn(4, 2)})
    if ragged:
        outputs = Outputs(torch.randn(4, 3, 2), mask=torch.rand(4, 3) < 0.7)
    layout = Layout.of(outputs)
    path = tmp_path / shard_name(0)
    write_shard(path, layout.encode(outputs, seen=seen_of(range(4)), keys=0), layout)
    content = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for position in range(0, len(content), 3):
        hurt = bytearray(content)
        hurt[position] ^= 1 << chance.randrange(8)
        path.unlink()
        path.write_bytes(hurt[:position] if position % 5 == 0 else hurt)
        try:
            layout.decode(map_shard(path, layout).cells)
        except IntegrityError:
            refused += 1
    assert refused > len(content) / 15


def _read_in_process(store: Store, queue: "multiprocessing.Queue[list[list[float]]]") -> None:
    logits = store.read(seen_of([4, 2])).logits
    assert logits is not None
    queue.put(logits.tolist())


def test_other_processes_open_it_again(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path), cache_bytes=0)
    expected = logits_of([4, 2], 7)
    content = pickle.dumps(store)
    assert len(content) < 1000
    found = pickle.loads(content).read(seen_of([4, 2])).logits
    assert torch.equal(found, expected)
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[list[float]]] = context.Queue()
    worker = context.Process(target=_read_in_process, args=(store, queue))
    worker.start()
    assert torch.equal(torch.tensor(queue.get()), expected)
    worker.join()
    assert worker.exitcode == 0


def test_a_ragged_store_over_shards(tmp_path: Path) -> None:
    layout, whole = None, {}
    for number, length in enumerate((2, 5, 3)):
        mask = torch.arange(length) < torch.randint(0, length + 1, (4, 1))
        outputs = Outputs(torch.randn(4, length, 6), mask=mask)
        layout = layout or Layout.of(outputs)
        samples = np.arange(4) + 4 * number
        rows = layout.encode(outputs, seen=seen_of(samples), keys=samples)
        write_shard(tmp_path / "work" / shard_name(number), rows, layout)
        assert outputs.logits is not None
        whole |= {int(n): (outputs.logits[i], mask[i]) for i, n in enumerate(samples)}
    with writing(tmp_path / "store", kind="store", name="x") as draft:
        seal(draft, tmp_path / "work", finished(tmp_path / "work"), {})
    store = Store.open(tmp_path / "store")
    for chosen in ([11, 0, 5, 6, 1], [4, 5], [9]):
        found = store.read(seen_of(chosen), length=5)
        assert found.logits is not None
        assert found.mask is not None
        for row, number in enumerate(chosen):
            logits, mask = whole[number]
            assert torch.equal(found.mask[row, : len(mask)], mask)
            assert not found.mask[row, len(mask) :].any()
            assert torch.equal(found.logits[row, : len(mask)], logits * mask[:, None])


# Files that were not written by decoct, under checksums that are right.


def seal_again(folder: Path, **renamed: str) -> None:
    """Makes the manifest agree with the files; `renamed` gives names in it another spelling."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for name, each in manifest["files"].items():
        content = (folder / name).read_bytes()
        each |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"] = {renamed.get(name, name): each for name, each in manifest["files"].items()}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "entry",
    [
        {"file": "ELSEWHERE/00000.arrow"},
        {"file": "../../work/00000.arrow"},
        {"file": "first.arrow"},
        {"file": "00000.arrow\n"},
        {"file": 3},
        {"rows": -1},
        {"rows": "many"},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("verify", ["all", "lazy", "none"])
def test_a_table_names_shards_alone(tmp_path: Path, entry: dict[str, object], verify: str) -> None:
    folder = make_store(tmp_path)
    content = json.loads((folder / "store.json").read_text())
    entry = {k: v.replace("ELSEWHERE", str(tmp_path / "work")) if isinstance(v, str) else v for k, v in entry.items()}
    content["shards"][0] |= entry
    (folder / "store.json").write_text(json.dumps(content))
    seal_again(folder)
    assert Artifact.load(folder).kind == "store"
    with pytest.raises(IntegrityError, match="an entry that decoct did not write"):
        Store.open(folder, verify=verify)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "{}",
        '{"format": 1}',
        '{"format": 1, "layout": {}, "meta": {}, "statistics": {}, "shards": []}',
        '{"format": 1, "layout": {"codec": {"use": "no"}, "classes": 1, "positions": null, "columns": []}, "meta": {}, '
        '"statistics": {}, "shards": []}',
        '{"format": 1, "layout": {"codec": null, "classes": 1, "positions": null, "columns": [{"name": "a", "dtype": '
        '"float32", "shape": [-1], "mask": ""}]}, "meta": {}, "statistics": {}, "shards": []}',
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    folder = make_store(tmp_path)
    (folder / "store.json").write_text(text)
    seal_again(folder)
    with pytest.raises(IntegrityError, match="that decoct wrote"):
        Store.open(folder)


def index_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    with pyarrow.ipc.open_file(folder / "index.arrow") as file:
        return tuple(column.to_numpy() for column in file.get_batch(0).columns)  # type: ignore[return-value]


@pytest.mark.parametrize("harm", ["narrow", "one column", "row", "shard", "order", "twice", "no numbers", "names"])
def test_an_index_of_another_form_is_refused(tmp_path: Path, harm: str) -> None:
    folder = make_store(tmp_path)
    seen, locations = (each.copy() for each in index_of(folder))
    if harm == "row":
        locations[59] = (2 << 32) + 15
    elif harm == "shard":
        locations[0] = 4 << 32
    elif harm == "order":
        seen[[3, 4]] = seen[[4, 3]]
    elif harm == "twice":
        seen[59] = seen[58]
    columns = {"seen": pyarrow.array(seen), "location": pyarrow.array(locations)}
    if harm == "narrow":
        columns["location"] = pyarrow.array((locations & 7).astype(np.uint8))
    elif harm == "one column":
        columns.pop("location")
    elif harm == "no numbers":
        columns["seen"] = pyarrow.array([None, *seen[1:].tolist()], pyarrow.uint64())
    elif harm == "names":
        columns = {"location": columns["location"], "seen": columns["seen"]}
    batch = pyarrow.RecordBatch.from_pydict(columns)
    with pyarrow.ipc.new_file(folder / "index.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    seal_again(folder)
    with pytest.raises(IntegrityError, match=r"index\.arrow (has other columns|is no index)"):
        Store.open(folder)


@pytest.mark.parametrize("name", ["shards/../../work/00001.arrow", "shards/first.arrow", "shards/a/00001.arrow"])
def test_a_manifest_names_shards_alone(tmp_path: Path, name: str) -> None:
    folder = make_store(tmp_path)
    seal_again(folder, **{"shards/00001.arrow": name})
    with pytest.raises(IntegrityError, match=r"no name of a shard|no file of this folder"):
        damaged_shards(folder)
    assert salvage(folder, tmp_path / "again") == {}
    assert finished(tmp_path / "again") == {}


def test_what_is_whole_and_no_shard_is_not_salvaged(tmp_path: Path) -> None:
    folder = make_store(tmp_path)
    for number, content in ((1, b"text"), (2, (folder / "index.arrow").read_bytes())):
        (folder / "shards" / shard_name(number)).unlink()
        (folder / "shards" / shard_name(number)).write_bytes(content)
    seal_again(folder)
    assert salvage(folder, tmp_path / "again").keys() == finished(tmp_path / "again").keys() == {0, 3}


@pytest.mark.parametrize(("cache_bytes", "whole"), [(60 * 7 * 4, True), (60 * 7 * 4 - 1, False)])
def test_a_store_of_exactly_the_cache_s_size_is_kept_in_memory(tmp_path: Path, cache_bytes: int, whole: bool) -> None:
    """What is kept in memory is read whole, so damage in another shard is found."""
    folder = make_store(tmp_path)
    flip(folder / "shards" / shard_name(3), random.Random(0))
    store = Store.open(folder, verify="lazy", cache_bytes=cache_bytes)
    if whole:
        with pytest.raises(IntegrityError, match=r"00003\.arrow is damaged"):
            store.read(seen_of([0]))
    else:
        assert torch.equal(store.read(seen_of([0])).logits, logits_of([0], 7))


@pytest.mark.parametrize("twice", [2**20 - 2, 2**20 - 1, 2**20])
def test_an_index_is_in_order_also_where_its_blocks_meet(tmp_path: Path, twice: int) -> None:
    """A million entries, of which one has the `seen` of the entry before."""
    folder = make_store(tmp_path, count=4, shards=1)
    seen = np.arange(2**20 + 2, dtype=np.uint64)
    columns = {"seen": pyarrow.array(seen), "location": pyarrow.array(np.zeros_like(seen))}
    for harm in (False, True):
        if harm:
            seen[twice + 1] = seen[twice]
            columns["seen"] = pyarrow.array(seen)
        batch = pyarrow.RecordBatch.from_pydict(columns)
        with pyarrow.ipc.new_file(folder / "index.arrow", batch.schema) as writer:
            writer.write_batch(batch)
        seal_again(folder)
        if not harm:
            assert len(Store.open(folder, verify="index")) == 2**20 + 2
    with pytest.raises(IntegrityError, match=r"index\.arrow is no index"):
        Store.open(folder, verify="index")


@pytest.mark.parametrize(("keys", "views"), [([4], [0]), ([3], [1])])
def test_one_sight_of_another_sample_or_view_is_refused(tmp_path: Path, keys: list[int], views: list[int]) -> None:
    work = tmp_path / "work"
    layout = write_work(work, 10, 4, 2, DenseCodec())
    unlike = layout.encode(Outputs(logits_of([3], 4)), seen=seen_of([3]), keys=keys, views=views)
    write_shard(work / shard_name(2), unlike, layout)
    with (
        pytest.raises(DataError, match="1 rows have one `seen` and unlike key or view"),
        writing(tmp_path / "store", kind="store", name="x") as draft,
    ):
        seal(draft, work, finished(work), {})


def test_a_table_of_a_shard_without_rows_is_refused(tmp_path: Path) -> None:
    shard = finished(make_store(tmp_path).parent / "work")[0].plain()
    assert shard_of({**shard, "rows": 1}).rows == 1
    assert shard_of({**shard, "rows": 2**32 - 1}).rows == 2**32 - 1
    for rows in (0, 2**32):
        with pytest.raises(IntegrityError, match="did not write"):
            shard_of({**shard, "rows": rows})


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 59), max_size=40),
    shards=st.integers(1, 30),
    codec=st.sampled_from(
        [None, DenseCodec(), DenseCodec(dtype="uint8"), TopKCodec(3), TopKCodec(2, tail="sample", draws=2)]
    ),
)
def test_rows_fetched_one_by_one_are_those_fetched_by_shard(
    chosen: list[int], shards: int, codec: Codec | None
) -> None:
    with TemporaryDirectory() as name:
        store = Store.open(make_store(Path(name), shards=shards, codec=codec), cache_bytes=0)
        both = []
        before = reading.FEW
        for few in (0, 1000):
            reading.FEW = few
            try:
                both.append(list(store.read(seen_of(chosen)).tensors()))
            finally:
                reading.FEW = before
    assert len(both[0]) == len(both[1]) > 0
    for ours, theirs in zip(*both):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_batch_maps_the_shards_that_it_meets_alone(tmp_path: Path) -> None:
    """The files of other shards are gone, and nothing asks for them."""
    folder = make_store(tmp_path, shards=10)
    for number in (0, *range(3, 10)):
        (folder / "shards" / shard_name(number)).unlink()
    store = Store.open(folder, verify="lazy", cache_bytes=0)
    found = store.read(seen_of([6, 17, 11])).logits
    assert found is not None
    assert torch.equal(found, logits_of([6, 17, 11], 7))


def test_the_index_stays_in_its_file(tmp_path: Path) -> None:
    """What is found by is a view of mapped bytes: no array of its own, which would grow with the rows."""
    for verify in ("none", "lazy", "all"):
        store = Store.open(make_store(tmp_path / verify), verify=verify)
        assert not store.seen.flags.owndata
        assert not store.seen.flags.writeable
        assert isinstance(store.seen.base, pyarrow.Buffer) or not store.seen.base.flags.owndata
