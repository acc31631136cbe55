"""What data cost as they grow: pictures to the first batch, in an epoch and in memory; plans over all kinds of data.

    python benchmarks/scale_data.py [--rounds 3] [--pictures 1350] [--many 100000] [--lines 100000] [--rows 1000000]

Each figure is of a fresh process: seconds after its imports, peak memory beyond that after its imports (ru_maxrss).
Pictures are JPEG of 256 pixels brought to 224, made up here; the loader of torch decodes them as decoct does, by two
workers. `cold` has an empty cache folder, `warm` the one that a cold opening filled. Memory over many pictures: links
to 16 small ones, brought to 64 pixels, decoded in each epoch (`no disk`: the cache folder takes nothing).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _shared import command, origin, parser, table, write
from PIL import Image

BATCH = 64
CHILD = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, torch, tokenizers
import decoct.tasks.image_classification, decoct.tasks.text_classification, decoct.tasks.tabular_classification
from decoct.data.image_folder import ImageFolder
from decoct.data.index import opened
from decoct.data.sources import Batches
from decoct.recipe.recipe import Recipe
from decoct.runner.execution import plan
from decoct.tasks.image_classification import ImageClassification
from PIL import Image

class Files(torch.utils.data.Dataset):
    def __init__(self, root):
        self.paths = sorted(Path(root).rglob("*.jpg"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, place):
        with Image.open(self.paths[place]) as opened:
            picture = opened.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def batches(way, root, size, batch):
    if way == "loader":
        loader = torch.utils.data.DataLoader(Files(root), batch_size=batch, shuffle=True, num_workers=2)
        return iter(loader)
    data = opened(ImageFolder(path=root, size=size))
    task = ImageClassification().resolve(data)
    return iter(Batches(data.splits["train"], task.collate, batch_size=batch, seed=0, prefetch=2))

def pictures(way, root, size, batch):
    before, start = peak(), time.perf_counter()
    drawn = batches(way, root, size, batch)
    next(drawn)
    first, count, start = time.perf_counter() - start, 0, time.perf_counter()
    for each in drawn:
        count += len(each)
    return {"first": first, "rate": count / (time.perf_counter() - start), "base": before, "peak": peak() - before}

def planned(plain):
    start = time.perf_counter()
    plan(Recipe.parse(plain), Path("run"))
    return {"seconds": time.perf_counter() - start}

print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
"""


def child(cache: Path, name: str, *arguments: Any) -> dict[str, float]:
    """What a fresh process measures."""
    words = [sys.executable, "-W", "ignore", "-c", CHILD, name, json.dumps(arguments)]
    given = {**os.environ, "DECOCT_CACHE": str(cache)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=cache.parent, env=given)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def make_pictures(root: Path, count: int) -> Path:
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def make_links(root: Path, count: int) -> Path:
    """Links to 16 pictures, with a validation and a test folder, so that nothing is held out by key."""
    for number in range(count + 8):
        split = "train" if number < count else ("validation", "test")[number % 2]
        path = root / split / "ab"[number // 2 % 2] / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        own = root / f"{number % 16}.png"
        if not own.exists():
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(own)
        os.link(own, path)
    return root


def make_lines(file: Path, count: int) -> Path:
    draws = np.random.default_rng(0).zipf(1.3, (count, 12)) % 30_000
    file.write_text("\n".join(f"{' '.join(f'w{word}' for word in row)}\t{row[0] % 2}" for row in draws.tolist()))
    return file


def make_rows(file: Path, count: int) -> Path:
    draws = np.random.default_rng(0).normal(size=(count, 8)).round(4)
    lines = (f"{','.join(map(str, row))},{'ab'[row[0] > 0]}" for row in draws.tolist())
    file.write_text("a,b,c,d,e,f,g,h,y\n" + "\n".join(lines))
    return file


def recipe(task: str, data: dict[str, Any]) -> dict[str, Any]:
    model = {"image": "small_resnet", "text": "bilstm", "tabular": "mlp"}[task]
    step = {"use": "train", "name": "alone", "inputs": {"model": "small"}, "budget": {"steps": 1}}
    plain = {"version": 1, "seed": 0, "task": {"use": f"{task}_classification"}, "data": data}
    return {**plain, "models": {"small": {"use": model}}, "steps": [step]}


def first_batches(folder: Path, count: int, rounds: int) -> list[str]:
    root = make_pictures(folder / "pictures", count)
    child(folder / "warm", "pictures", "decoct", str(root), 224, BATCH)
    found: dict[str, list[dict[str, float]]] = {"loader, 2 workers": [], "decoct, cold": [], "decoct, warm": []}
    for number in range(rounds):
        for name, each in found.items():
            cache = folder / ("warm" if name.endswith("warm") else f"cold{number}")
            each.append(child(cache, "pictures", name.partition(",")[0], str(root), 224, BATCH))
    middle = {name: {key: statistics.median(e[key] for e in each) for key in each[0]} for name, each in found.items()}
    base, decoded = middle["loader, 2 workers"], count * 224 * 224 * 3 / 2**20
    rows = [
        (
            name,
            f"{each['first']:.2f}",
            f"{each['first'] / base['first']:.2f}",
            f"{each['rate']:.0f}",
            f"{each['rate'] / base['rate']:.2f}",
            f"{each['peak']:.0f}",
            f"{each['peak'] / decoded:.2f}",
        )
        for name, each in middle.items()
    ]
    titles = [
        "way",
        "first batch, s",
        "of the loader's",
        "pictures/s after it",
        "of the loader's",
        "peak, MiB",
        "of decoded",
    ]
    return [f"{count:,} JPEG pictures, {decoded:.0f} MiB once decoded, batches of {BATCH}.", "", *table(titles, rows)]


def memory(folder: Path, counts: Sequence[int]) -> list[str]:
    (folder / "nothing").write_text("")
    peaks = {}
    for count in counts:
        root = make_links(folder / f"links{count}", count)
        peaks[count] = {
            name: child(cache, "pictures", "decoct", str(root), 64, BATCH)
            for name, cache in (("no disk", folder / "nothing"), ("cold", folder / f"links-cache{count}"))
        }
    rows = []
    for count, each in peaks.items():
        whole = {name: found["base"] + found["peak"] for name, found in each.items()}
        least = {name: found["base"] + found["peak"] for name, found in peaks[counts[0]].items()}
        rows.append((f"{count:,}", *(f"{whole[name]:.0f} ({whole[name] / least[name]:.2f})" for name in whole)))
    return table(["pictures", "peak of the process, MiB, no disk", "cold"], rows)


def plans(folder: Path, sizes: dict[str, Sequence[int]], rounds: int) -> list[str]:
    makers = {
        "image": lambda count: {"use": "image_folder", "path": str(make_pictures(folder / f"i{count}", count))},
        "text": lambda count: {"use": "tsv", "path": str(make_lines(folder / f"t{count}.tsv", count))},
        "tabular": lambda count: {"use": "csv", "target": "y", "path": str(make_rows(folder / f"r{count}.csv", count))},
    }
    rows = []
    for task, counts in sizes.items():
        made = {count: recipe(task, makers[task](count)) for count in counts}
        cold = {count: child(folder / f"plan{task}{count}", "planned", made[count])["seconds"] for count in counts}
        warm: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(rounds):
            for count in counts:
                warm[count].append(child(folder / f"plan{task}{count}", "planned", made[count])["seconds"])
        middle = {count: statistics.median(each) for count, each in warm.items()}
        for count in counts:
            least = middle[counts[0]]
            rows.append(
                (task, f"{count:,}", f"{cold[count]:.2f}", f"{middle[count]:.2f}", f"{middle[count] / least:.2f}")
            )
    return table(["data", "samples", "plan cold, s", "warm, s", "warm, of the smallest"], rows)


def main() -> None:
    made = parser(__doc__)
    for name, default in (
        ("rounds", 3),
        ("pictures", 1350),
        ("many", 100_000),
        ("lines", 100_000),
        ("rows", 1_000_000),
    ):
        made.add_argument(f"--{name}", type=int, default=default)
    given = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            ["# Data as they grow", "", "## Pictures: the first batch, an epoch, memory", ""],
            [*first_batches(folder, given.pictures, given.rounds), "", "## Pictures: memory over their number", ""],
            [*memory(folder, (1000, given.many)), "", "## Plans", ""],
            [
                *plans(
                    folder,
                    {"image": (100, given.pictures), "text": (1000, given.lines), "tabular": (1000, given.rows)},
                    given.rounds,
                ),
                "",
            ],
            [command("scale_data", given), "", origin(), ""],
        ]
    write("scale_data", [line for part in parts for line in part])


if __name__ == "__main__":
    main()
