"""What a run costs as its steps and its log grow: CPU time of the command in fresh processes.

    python benchmarks/scale_run.py [--rounds 3] [--few 5] [--many 200] [--most 1000] [--records 100000] [--out DIR]

Tiny steps are trained once; then `decoct run` that skips all of them, and `decoct plan`, are timed over so many steps
in turn. `decoct check` and `plan` of the smallest recipe are set against `import torch`. At last ten tiny steps are
made after one whose log has so many records, and after the same one whose log has two. Writes
benchmarks/results/scale_run.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from _shared import ROOT, command, interleaved, interval, origin, paired, parser, table, write

from decoct.artifact import MANIFEST, read_manifest, sealed, sha256
from decoct.recipe.recipe import Recipe

MORE = 10
"""Steps that are made after the one with the long log."""


def recipe(count: int) -> Recipe:
    """So many trainings of one optimizer step each, none after another."""
    step = {"use": "train", "inputs": {"model": "small"}, "budget": {"steps": 1}}
    return Recipe.parse(
        {
            "task": {"use": "image_classification"},
            "data": {"use": "digits"},
            "models": {"small": {"use": "mlp", "hidden": [4]}},
            "steps": [{**step, "name": f"s{number}"} for number in range(count)],
        }
    )


def cpu(*words: str | Path) -> float:
    """Seconds of CPU time, of user and kernel, that Python takes for these words; modules are compiled beforehand."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def decoct(verb: str, folder: Path) -> float:
    """CPU time of a command on the recipe that lies beside a run's folder."""
    out: list[str | Path] = [] if verb == "check" else ["--out", folder]
    return cpu("-m", "decoct", "--quiet", verb, folder.with_suffix(".yaml"), *out)


def made(folder: Path, count: int, whole: Path | None = None) -> Path:
    """A run of so many steps that is finished; those that `whole` has are taken from there."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".yaml").write_text(recipe(count).yaml(), encoding="utf-8")
    steps = [] if whole is None else sorted(whole.glob("*-s*"), key=lambda path: int(path.name.partition("-s")[2]))
    for path in steps[:count]:
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    decoct("run", folder)
    return folder


def lengthen(step: Path, records: int) -> None:
    """Gives a step's artifact a log of so many records of random losses, which its manifest names."""
    drawn = random.Random(0)
    with (step / "log.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, records + 1):
            loss = 0.1 + drawn.random()
            told = {"loss": loss, "terms": {"task_loss": loss}, "weights": {"task_loss": 1.0}, "lr": drawn.random()}
            file.write(json.dumps({"kind": "train", "step": number, "epoch": 0, **told, "time": 0.001 * number}) + "\n")
    manifest, log = read_manifest(step), step / "log.jsonl"
    manifest["files"]["log.jsonl"] = {"bytes": log.stat().st_size, "sha256": sha256(log)}
    (step / MANIFEST).write_text(sealed(manifest), encoding="utf-8")


def further(folder: Path) -> float:
    """CPU time of a run that skips its first step and makes the others."""
    for path in folder.glob("*-s*"):
        if path.name != "01-s0":
            shutil.rmtree(path)
    return decoct("run", folder)


def main() -> None:
    settings = parser(__doc__)
    for name, default in (("rounds", 3), ("few", 5), ("many", 200), ("most", 1000), ("records", 100_000)):
        settings.add_argument(f"--{name}", type=int, default=default)
    settings.add_argument("--out", type=Path, default=ROOT / "runs" / "scale_run")
    given = settings.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    most = made(given.out / "most", given.most)
    few, many = made(given.out / "few", given.few, most), made(given.out / "many", given.many, most)
    short, long = made(given.out / "short", 1 + MORE, most), made(given.out / "long", 1 + MORE, most)
    lengthen(long / "01-s0", given.records)
    decoct("check", few)
    times = interleaved(
        {
            "import torch": lambda: cpu("-c", "import torch"),
            "check": lambda: decoct("check", few),
            **{f"plan {run.name}": partial(decoct, "plan", run) for run in (few, many, most)},
            **{f"run {run.name}": partial(decoct, "run", run) for run in (few, many, most)},
            "short": lambda: further(short),
            "long": lambda: further(long),
        },
        given.rounds,
        warmup=0,
    )
    torch = times["import torch"]
    rows: list[tuple[str, ...]] = [("`python -c 'import torch'`", f"{interval(torch).median:.2f}", "", "1.00")]
    checked = ("`decoct check`", given.few, times["check"], times["check"])
    counts = {"few": given.few, "many": given.many, "most": given.most}
    timed = [
        (f"`decoct {verb}`, all skipped", n, times[f"{verb} {name}"], times[f"{verb} few"])
        for verb in ("plan", "run")
        for name, n in counts.items()
    ]
    for what, count, own, base in (checked, *timed):
        ratios = [f"{paired(own, each, 'ratio').median:.2f}" for each in (base, torch)]
        rows.append((f"{what}, {count} steps", f"{interval(own).median:.2f}", *ratios))
    cost = paired(times["long"], times["short"])
    lines = [
        "# Runs of many steps and of long logs",
        "",
        *table(["command", "CPU time, s", f"against {given.few} steps", "against `import torch`"], rows),
        "",
        f"{MORE} tiny steps made after a step whose log has {given.records:,} records instead of two: "
        f"{cost.text('+.2f')} s of CPU time ({interval(times['short']).median:.2f} s without them).",
        "",
        f"Medians of {given.rounds} rounds, ratios within a round. {command('scale_run', given)}",
        "",
        origin(),
        "",
    ]
    write("scale_run", lines)


if __name__ == "__main__":
    main()
