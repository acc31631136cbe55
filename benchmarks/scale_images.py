"""What folders of pictures cost: plans over more and more of them, the first opening, statistics, augmentation.

    python benchmarks/scale_images.py [--rounds 5] [--pictures 1350] [--few 100] [--many 3000] [--most 20000]
        [--parts plans,first,bytes]

"plans": a plan over pictures that the index knows, in fresh processes after their imports, all sizes in turn; the file
system's own share is `os.stat` of each picture, which nothing spares, as a file that is changed in place leaves its
folder's time alone. "first": from nothing to the first batch of 64 JPEG pictures of 224 pixels (made up here), beside
torch's loader with two workers, and beside one whole epoch of that loader: the order of an epoch hangs on the keys of
all samples and these on their pixels, so that each must be decoded once before the first batch; the epoch is what that
costs there. "bytes": channel statistics beside the mean and deviation of the same pixels as float64, and augmentation
beside a copy of slices.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _shared import command, interleaved, origin, paired, parser, table, write
from scale_data import BATCH, child, make_pictures, recipe

from decoct.tasks.inputs.augment import Augment, augmented
from decoct.tasks.inputs.images import channel_statistics


def links(root: Path, count: int) -> Path:
    """A folder of two classes with so many names of 16 pictures."""
    made = make_pictures(root.with_name(f"{root.name}-made"), 16)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(made / "ab"[number % 2] / f"{number % 16:06}.jpg", path)
    return root


def looked_at(root: Path) -> float:
    """Seconds of `os.stat` of every picture, their names known."""
    names = [os.path.join(place, name) for place, _, files in os.walk(root) for name in files]
    start = time.perf_counter()
    for _ in map(os.stat, names):
        pass
    return time.perf_counter() - start


def plans(folder: Path, counts: list[int], rounds: int) -> list[str]:
    roots = {count: links(folder / f"i{count}", count) for count in counts}
    made = {count: recipe("image", {"use": "image_folder", "path": str(root)}) for count, root in roots.items()}

    def plan(count: int) -> float:
        return child(folder / f"plan{count}", "planned", made[count])["seconds"]

    times = interleaved({str(count): partial(plan, count) for count in counts}, rounds)
    rows = []
    for count in counts:
        own = times[str(count)]
        ratio = paired(own, times[str(counts[0])], "ratio").median
        stat = statistics.median(looked_at(roots[count]) for _ in range(rounds))
        rows.append((f"{count:,}", f"{statistics.median(own):.3f}", f"{min(own):.3f}", f"{ratio:.2f}", f"{stat:.3f}"))
    return table(["pictures", "plan, s", "least, s", "of the fewest", "of it `os.stat`, s"], rows)


def first(folder: Path, count: int, rounds: int) -> list[str]:
    root = make_pictures(folder / "pictures", count)
    child(folder / "warm", "pictures", "decoct", str(root), 224, BATCH)
    found: dict[str, list[dict[str, float]]] = {"loader, 2 workers": [], "decoct, cold": [], "decoct, warm": []}
    for number in range(rounds):
        for name, each in found.items():
            cache = folder / ("warm" if name.endswith("warm") else f"cold{number}")
            each.append(child(cache, "pictures", name.partition(",")[0], str(root), 224, BATCH))
    base, decoded = found["loader, 2 workers"], count * 224 * 224 * 3 / 2**20
    rows = []
    for name, each in found.items():
        firsts = [one["first"] for one in each]
        bare = [one["first"] + (count - BATCH) / one["rate"] for one in base]
        rows.append(
            (
                name,
                f"{statistics.median(firsts):.2f}",
                f"{paired(firsts, [one['first'] for one in base], 'ratio').median:.2f}",
                f"{paired(firsts, bare, 'ratio').median:.2f}",
                f"{paired([one['rate'] for one in each], [one['rate'] for one in base], 'ratio').median:.2f}",
                f"{statistics.median(one['peak'] for one in each) / decoded:.2f}",
            )
        )
    titles = ["way", "first batch, s", "of the loader's", "of its whole epoch", "pictures/s after it, of the loader's"]
    return [f"{count:,} pictures, {decoded:.0f} MiB once decoded.", "", *table([*titles, "peak, of decoded"], rows)]


def of_bytes(rounds: int) -> list[str]:
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    seeds = np.arange(BATCH, dtype=np.uint64)

    def slices() -> None:
        made = np.zeros_like(images)
        for target, image in zip(made, images):
            target[4:, 4:] = image[:-4, :-4]

    def in_floats() -> None:
        floats = images.astype(np.float64) / 255
        floats.mean((0, 1, 2))
        floats.std((0, 1, 2))

    ways: dict[str, Callable[[], Any]] = {
        "statistics": partial(channel_statistics, images),
        "float64": in_floats,
        "augmented": partial(augmented, images, seeds, Augment(flip=True, crop=4)),
        "slices": slices,
    }
    times = interleaved(ways, rounds, clock=time.process_time)
    rows = [
        (
            own,
            base,
            f"{1e6 * statistics.median(times[own]) / BATCH:.0f}",
            paired(times[own], times[base], "ratio").text(),
        )
        for own, base in (("statistics", "float64"), ("augmented", "slices"))
    ]
    return table(["way", "beside", "µs of CPU a picture of 224 pixels", "ratio"], rows)


def main() -> None:
    made = parser(__doc__)
    for name, default in (("rounds", 5), ("pictures", 1350), ("few", 100), ("many", 3000), ("most", 20_000)):
        made.add_argument(f"--{name}", type=int, default=default)
    made.add_argument("--parts", default="plans,first,bytes")
    given = made.parse_args()
    lines = ["# Folders of pictures", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in given.parts.split(","):
            if part == "plans":
                counts = [given.few, given.many, given.most]
                lines += ["## Plans over known pictures", "", *plans(folder, counts, given.rounds), ""]
            elif part == "first":
                lines += ["## The first batch", "", *first(folder, given.pictures, given.rounds), ""]
            else:
                lines += ["## Bytes", "", *of_bytes(4 * given.rounds), ""]
    write("scale_images", [*lines, command("scale_images", given), "", origin(), ""])


if __name__ == "__main__":
    main()
