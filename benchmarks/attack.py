"""Hostile inputs to every door: how many end in a traceback, by a signal, or not at all.

    python benchmarks/attack.py [--inputs 2400] [--seed 0] [--limit 60] [--keep DIR]

Recipes, sealed JSON of a finished run (checksums left wrong, and made right again), pictures, tables, tokenizers and
answers of a server are changed at random, by bytes and by values; each goes through the command in a forked process of
its own. Good ends are the exit codes 0 and 2 to 6. What ends otherwise is kept in --keep with its output.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _shared import command, origin, parser, table, write

from decoct.artifact import MANIFEST, SEAL, sealed, sha256
from decoct.cli.app import call

TINY = """\
version: 1
seed: 0
task: {use: TASK}
data: {use: digits, limit: 40}
models:
  large: {use: mlp, hidden: [16]}
  small: {use: mlp, hidden: [4]}
steps:
  - {use: train, name: teacher, inputs: {model: large}, budget: {steps: 3}, batch_size: 16}
  - use: distill
    name: student
    inputs: {model: small, teacher: teacher}
    budget: {steps: 3}
    batch_size: 16
    objective:
      - {use: kd, weight: 0.9, temperature: 4.0}
      - {use: cross_entropy, weight: 0.1}
  - {use: export, name: student_onnx}
  - {use: benchmark, name: benchmark, inputs: {student: student_onnx}, repeats: 2}
"""
IMAGES = TINY.replace("TASK", "image_classification")
TEXTS = """\
version: 1
task: {use: text_classification, tokenizer: {use: pretrained, path: tokenizer.json}, max_length: 16}
data: {use: tsv, path: texts.tsv}
models: {small: {use: bilstm, embedding: 4, hidden: 4}}
steps: [{use: train, name: a, inputs: {model: small}, budget: {steps: 2}}]
"""
HOSTILE = [
    "true", "null", "'7'", "1_000", "1e400", "-1", "0", "1" * 25, "[]", "{}", "[[[[1]]]]", "nan", ".inf", "''", "2**99",
    '"\\e[31m"', "&a [*a]", "*a", "!!python/object:os.system x", "{use: kd}", "~", "é" * 99, "a: b", "- x",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1e308, float("inf"), 10**25, "", "x", "../../etc/passwd", "\x1b[31m", "\ud800", [], {}, [None],
    {"use": "kd"}, {"use": 3}, {"a": {"b": {"c": []}}}, "mlp", [1, 2, 3], 0.5, "nan", -(10**9),
]  # fmt: skip
Door = Callable[[random.Random, Path], list[str]]
"""Prepares an input in a folder, its working directory, and gives the words of the command."""


def bytes_changed(draw: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut out, doubled, or the end cut off."""
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        at = draw.randrange(max(len(found), 1))
        kind = draw.randrange(5)
        if kind == 0 and found:
            found[at] = draw.randrange(256)
        elif kind == 1:
            del found[at : at + draw.choice([1, 4, 200])]
        elif kind == 2:
            found[at:at] = found[at : at + draw.choice([1, 16, 500])]
        elif kind == 3:
            found[at:at] = bytes(draw.randrange(256) for _ in range(4))
        elif draw.random() < 0.2:
            del found[at:]
    return bytes(found)


def text_changed(draw: random.Random, text: str) -> str:
    """A line dropped, doubled or shifted, or a value replaced by a hostile one."""
    lines = text.splitlines()
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind == 2:
            lines[at] = draw.choice([" ", "   ", "- "]) + lines[at]
        else:
            parts = lines[at].split(": ")
            spot = draw.randrange(len(parts))
            parts[spot] = draw.choice(HOSTILE)
            lines[at] = ": ".join(parts)
    return "\n".join(lines) + "\n"


def value_changed(draw: random.Random, value: Any) -> Any:
    """JSON data with one value, somewhere inside, replaced, dropped or wrapped."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: value_changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        return [value_changed(draw, each) if place == at else each for place, each in enumerate(value)]
    return [value] if draw.random() < 0.1 else draw.choice(VALUES)


def recipe(draw: random.Random, folder: Path) -> list[str]:
    """A recipe, changed by values or by bytes."""
    kind = draw.random()
    if kind < 0.6:
        plain = value_changed(draw, yaml.safe_load(IMAGES))
        content = yaml.safe_dump(plain, allow_unicode=True).encode(errors="replace")
    elif kind < 0.8:
        content = text_changed(draw, IMAGES).encode()
    else:
        content = bytes_changed(draw, IMAGES.encode())
    (folder / "r.yaml").write_bytes(content)
    return [draw.choice(["check", "plan", "show"]), "r.yaml"]


def override(draw: random.Random, folder: Path) -> list[str]:
    """A good recipe with a hostile setting on the command line."""
    (folder / "r.yaml").write_text(IMAGES, encoding="utf-8")
    keys = [
        "seed",
        "steps.student.budget.steps",
        "models.small.hidden",
        "data.limit",
        "task.use",
        "data",
        "steps.x.y",
        "a",
    ]
    return ["check", "r.yaml", f"{draw.choice(keys)}={draw.choice(HOSTILE)}"]


def records(run: Path) -> Door:
    """A finished run one of whose JSON files was changed; half of the time its checksums were made right again."""

    def door(draw: random.Random, folder: Path) -> list[str]:
        shutil.copytree(run, folder / "run")
        path = draw.choice(sorted(folder.glob("run/**/*.json")))
        changed = value_changed(draw, json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(changed), encoding="utf-8")
        if draw.random() < 0.3:
            path.write_bytes(bytes_changed(draw, path.read_bytes()))
        elif draw.random() < 0.7:
            resealed(path)
        student = next(folder.glob("run/*-student"))
        ways = [["verify", "run"], ["report", "run"], ["apply", "export", str(student), "--out", "file"]]
        return draw.choice([*ways, ["run", "run/recipe.yaml", "--out", "run"]])

    return door


def resealed(path: Path) -> None:
    """Makes the checksums around a changed file right again."""
    manifest = path.parent / MANIFEST
    if path.name != MANIFEST and manifest.is_file():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if path.name in content.get("files", {}):
            content["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        path = manifest
        path.write_text(json.dumps(content), encoding="utf-8")
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and SEAL in content:
        del content[SEAL]
        path.write_text(sealed(content), encoding="utf-8")


def pictures(kinds: dict[str, bytes]) -> Door:
    """A folder of pictures of two classes, some of them damaged or of odd names."""

    def door(draw: random.Random, folder: Path) -> list[str]:
        for label in ("a", "b"):
            (folder / "set" / label).mkdir(parents=True)
            for at in range(6):
                suffix = draw.choice(list(kinds))
                content = kinds[suffix] if draw.random() < 0.5 else bytes_changed(draw, kinds[suffix])
                (folder / "set" / label / f"{at}{suffix}").write_bytes(content)
        size = draw.choice(["null", "4", "0", "100000"])
        text = IMAGES.replace("{use: digits, limit: 40}", f"{{use: image_folder, path: set, size: {size}}}")
        (folder / "r.yaml").write_text(text, encoding="utf-8")
        return ["check", "r.yaml"]

    return door


def tables(draw: random.Random, folder: Path) -> list[str]:
    """A table in text, changed by bytes."""
    rows = ["x,kind,y"] + [
        f"{draw.gauss(0, 1):.3f},{draw.choice('uv')},{draw.choice(['no', 'yes'])}" for _ in range(40)
    ]
    (folder / "t.csv").write_bytes(bytes_changed(draw, "\n".join(rows).encode()))
    data = f"{{use: csv, path: t.csv, target: y, categorical: {draw.choice(['[kind]', '[]', '[x]'])}}}"
    text = TINY.replace("TASK", "tabular_classification").replace("{use: digits, limit: 40}", data)
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return ["init", "--from-folder", "t.csv", "--out", "made.yaml"] if draw.random() < 0.2 else ["check", "r.yaml"]


def tokenizers(whole: str) -> Door:
    """A tokenizer.json, changed by values or bytes."""

    def door(draw: random.Random, folder: Path) -> list[str]:
        (folder / "texts.tsv").write_text("".join(f"good film {n}\t{n % 2}\n" for n in range(40)), encoding="utf-8")
        changed = json.dumps(value_changed(draw, json.loads(whole)))
        content = (
            changed.encode("utf-8", "surrogatepass") if draw.random() < 0.7 else bytes_changed(draw, whole.encode())
        )
        (folder / "tokenizer.json").write_bytes(content)
        (folder / "r.yaml").write_text(TEXTS, encoding="utf-8")
        return ["check", "r.yaml"]

    return door


def answers(whole: dict[str, Any]) -> Door:
    """A teacher's server that answers with something else."""

    def door(draw: random.Random, folder: Path) -> list[str]:
        content = json.dumps(value_changed(draw, whole)).encode("utf-8", "surrogatepass")
        if draw.random() < 0.3:
            content = bytes_changed(draw, content)
        status = draw.choice([200, 200, 200, 200, 404, 500, 302, 999])

        class Odd(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                lengths = ["0", "-1", "1" * 30, "x", str(len(content) + 5)]
                self.send_header("Content-Length", draw.choice(lengths) if draw.random() < 0.2 else str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        model = f"{{use: http, url: '{url}', timeout: 2, retries: 0}}"
        text = IMAGES.replace("large: {use: mlp, hidden: [16]}", f"large: {model}").replace(
            "teacher: teacher", "teacher: large"
        )
        text = "\n".join(line for line in text.splitlines() if "name: teacher" not in line) + "\n"
        (folder / "r.yaml").write_text(text, encoding="utf-8")
        return [draw.choice(["check", "run"]), "r.yaml"]

    return door


def told(door: Door, draw: random.Random, folder: Path) -> int:
    """The exit code of the command on one input; what it prints goes to a file."""
    with (folder / "printed").open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as printed:
        sys.stdout = sys.stderr = printed
        try:
            words = door(draw, folder)
            print(words)
            code = call(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        printed.flush()
        return code


def attacked(door: Door, number: int, seed: int, limit: float, folder: Path) -> tuple[str, str]:
    """How one input ended (an exit code, "traceback", "signal" or "hang"), and what was printed."""

    def child() -> None:
        os.setsid()
        os.chdir(folder)
        os._exit(told(door, random.Random(f"{seed} {number} {door.__qualname__}"), folder))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return "hang", (folder / "printed").read_text(encoding="utf-8")
    printed = (folder / "printed").read_text(encoding="utf-8")
    if process.exitcode is None or process.exitcode < 0:
        return "signal", printed
    return (
        "traceback" if "Traceback (most recent" in printed or process.exitcode == 1 else str(process.exitcode)
    ), printed


@contextlib.contextmanager
def doors() -> Iterator[dict[str, tuple[Door, int]]]:
    """All doors, with their share of the inputs."""
    from PIL import Image

    from decoct.data.tsv import TSV
    from decoct.tasks.text_classification import TextClassification

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "r.yaml").write_text(IMAGES, encoding="utf-8")
        (root / "texts.tsv").write_text("".join(f"good film {n}\t{n % 2}\n" for n in range(40)), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = call(["run", str(root / "r.yaml"), "--out", str(root / "run")])
        assert code == 0, "the unchanged recipe runs"
        kinds = {}
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
        for suffix, kind in (
            (".png", "PNG"),
            (".jpg", "JPEG"),
            (".gif", "GIF"),
            (".tif", "TIFF"),
            (".bmp", "BMP"),
            (".webp", "WEBP"),
        ):
            stream = io.BytesIO()
            picture.save(stream, kind)
            kinds[suffix] = stream.getvalue()
        task = TextClassification().resolve(TSV(path=root / "texts.tsv").open())
        shown = json.loads(next(root.glob("run/*-teacher/task.json")).read_text(encoding="utf-8"))
        facts = {
            "decoct": "0.1.0",
            "task": shown,
            "side": "teacher",
            "classes": 10,
            "fingerprint": "ab" * 32,
            "features": [],
            "most_bytes": 1 << 20,
        }
        yield {
            "recipes": (recipe, 6),
            "overrides": (override, 2),
            "sealed JSON": (records(root / "run"), 5),
            "pictures": (pictures(kinds), 3),
            "tables": (tables, 3),
            "tokenizers": (tokenizers(task.tokenizer.text), 2),
            "answers of a server": (answers(facts), 3),
        }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--inputs", type=int, default=2400)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--limit", type=float, default=60.0)
    made.add_argument("--keep", type=Path)
    given = made.parse_args()
    ends: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    with doors() as found:
        parts = sum(share for _, share in found.values())
        for name, (door, share) in found.items():
            ends[name] = Counter()
            for number in range(given.inputs * share // parts):
                with tempfile.TemporaryDirectory() as place:
                    begun = time.monotonic()
                    end, printed = attacked(door, number, given.seed, given.limit, Path(place))
                    slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - begun)
                    ends[name][end] += 1
                    if given.keep and end in ("traceback", "signal", "hang"):
                        kept = given.keep / f"{name.replace(' ', '_')}_{number}_{end}"
                        shutil.copytree(place, kept, dirs_exist_ok=True)
                        print(kept, printed[-400:], flush=True)
            print(name, dict(ends[name]), flush=True)
    bad = ("traceback", "signal", "hang")
    rows = [
        [
            name,
            sum(each.values()),
            *(each[kind] for kind in bad),
            ", ".join(f"{k}: {v}" for k, v in sorted(each.items()) if k not in bad),
            f"{slowest[name]:.1f} s",
        ]
        for name, each in ends.items()
    ]
    total = sum(sum(each.values()) for each in ends.values())
    failed = {kind: sum(each[kind] for each in ends.values()) for kind in bad}
    told = ", ".join(f"{kind}s {count}" for kind, count in failed.items())
    lines = ["# Hostile inputs", "", f"Of {total:,} inputs: {told}.", ""]
    lines += table(["door", "inputs", *(f"{kind}s" for kind in bad), "exit codes", "slowest"], rows)
    write("attack", [*lines, "", command("attack", given), "", origin(), ""])


if __name__ == "__main__":
    main()
