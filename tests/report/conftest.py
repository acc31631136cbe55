"""Made records of runs, and a real browser that opens their pages."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; without it such tests skip, under CI they fail."""
    if not CHROMIUM.is_file():
        message = f"{CHROMIUM} is missing; apt-get install chromium brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


def model(name: str, accuracy: float, **more: Any) -> dict[str, Any]:
    """A model's record with all that a classifier's has."""
    record = {
        "name": name,
        "step": name,
        "path": f"01-{name}",
        "quality": {"accuracy": accuracy, "f1": accuracy - 0.001, "cross_entropy": 0.0712},
        "split": "test",
        "n": 360,
        "calibration": {"ece": 0.011},
        "parameters": 12010,
        "macs": 310000,
        "file_bytes": 52000,
        "peak_memory_bytes": 61000000,
        "latency": latency(0.031),
        "artifact": f"01-{name}/model.onnx",
        "verified": {"max_abs_diff": 3e-5, "agreement": 1.0},
    }
    return record | more


def latency(p50: float, **more: Any) -> dict[str, Any]:
    """A quiet measurement in ONNX Runtime."""
    record = {
        "runtime": "onnxruntime",
        "threads": 1,
        "batch": 1,
        "p50_ms": p50,
        "p99_ms": 1.4 * p50,
        "min_ms": 0.9 * p50,
    }
    return record | {"mean_ms": 1.05 * p50, "repeats": 30, "noisy": False, "throughput_per_s": 1000 / p50} | more


def confusion(wrong: int, classes: int = 10) -> dict[str, Any]:
    """36 samples a class, `wrong` of them spread over a few neighbours."""
    matrix = [[0] * classes for _ in range(classes)]
    for i in range(classes):
        matrix[i][i] = 36
    for k in range(wrong):
        i = (k * 7 + 1) % classes
        matrix[i][i] -= 1
        matrix[i][(i + 3 + k % 2) % classes] += 1
    return {"labels": [str(i) for i in range(classes)], "matrix": matrix}


def digits(seeds: int = 5) -> dict[str, Any]:
    """The records of a run on digits: teacher, student alone, student, and its int8 form."""
    sd = {} if seeds == 1 else {"accuracy": 0.0041, "f1": 0.0042}
    faithful = {"agreement": 0.986, "kl": 0.012}
    big = {"parameters": 151_000, "macs": 8_400_000, "file_bytes": 624_000, "latency": latency(0.288)}
    differences = [0.004, 0.02, 0.011, 0.014, 0.011][:seeds]
    compared = {"better": "student", "than": "student_alone", "metric": "accuracy", "differences": differences}
    interval = {"mean": 0.012, "low": 0.004, "high": 0.02} if seeds > 1 else {"mean": 0.012, "low": None, "high": None}
    names = ["teacher", "student_alone", "student", "student_onnx"]
    return {
        "decoct": "0.1.0",
        "recipe": {"version": 1, "task": {"use": "image_classification"}},
        "seed": 0,
        "seeds": list(range(seeds)),
        "device": "cpu",
        "wall_s": 61.2,
        "task": {"use": "image_classification", "metric": "accuracy", "direction": "max"},
        "data": {"use": "digits", "fingerprint": "5feceb66ffc86f38d952786c6d696c79"},
        "models": [
            model("teacher", 0.985, confusion=confusion(5), **big),
            model("student_alone", 0.969, quality_sd=sd, fidelity={"agreement": 0.975, "kl": 0.04}),
            model("student", 0.981, quality_sd=sd, fidelity=faithful, confusion=confusion(7)),
            model("student_int8", 0.978, quality_sd=sd, fidelity=faithful, file_bytes=21_000, latency=latency(0.024),
                  confusion=confusion(8), verified={"max_abs_diff": 0.21, "agreement": 0.994}),
        ],
        "comparisons": [compared | interval | {"level": 0.95, "n": seeds}],
        "steps": [
            {"name": name, "use": "train", "seed": seed, "wall_s": 4.2 + seed,
             "skipped": name == "teacher" and seed > 0,
             "why": "unchanged" if name == "teacher" and seed > 0 else None}
            for name in names for seed in range(seeds)
        ],
        "machine": {"processor": "x86_64", "cores": 2, "memory_gb": 7.8},
        "versions": {"torch": "2.15.0", "onnxruntime": "1.27.0"},
    }  # fmt: skip


def regression() -> dict[str, Any]:
    """A run whose metric is an error: less is better."""
    records = digits(1)
    records["task"] = {"use": "tabular_regression", "metric": "rmse", "direction": "min"}
    records["data"] = {"use": "california_housing"}
    for record, rmse in zip(records["models"], (0.442, 0.471, 0.454, 0.459)):
        record["quality"] = {"rmse": rmse, "r2": 0.84}
        record.pop("confusion", None)
        record["calibration"] = {}
        record["fidelity"] = {} if record["name"] == "teacher" else {"rmse": 0.11}
    records["comparisons"] = []
    return records


def log(seeds: int = 5, steps: int = 240) -> list[dict[str, Any]]:
    """Logged losses that fall, with a KD weight that fades."""
    lines: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name in ("teacher", "student_alone", "student"):
            for at in range(10, steps + 1, 10):
                fade, noise = 1 - at / steps, 0.04 * math.sin(at * (seed + 2))
                loss = 2.3 * math.exp(-at / 70) + 0.06 + noise * math.exp(-at / 90)
                terms, weights = {"cross_entropy": loss}, {"cross_entropy": 1.0}
                if name == "student":
                    terms, weights = {"kd": 3 * loss, "cross_entropy": loss}, {"kd": 0.9 * fade, "cross_entropy": 0.1}
                total = sum(weights[term] * value for term, value in terms.items())
                place = {"step": name, "seed": seed, "step_number": at, "epoch": at // 12, "time": float(at)}
                lines.append(
                    place | {"kind": "train", "loss": total, "terms": terms, "weights": weights, "lr": 2e-3 * fade}
                )
                if at % 20 == 0:
                    accuracy = 0.99 - 0.8 * math.exp(-at / 40) + 0.004 * math.cos(seed + at)
                    lines.append(place | {"kind": "validation", "scores": {"accuracy": accuracy}})
    return lines


RECIPE = """version: 1
seed: 0
task: {use: image_classification}
data: {use: digits}
models:
  large: {use: small_resnet, width: 32}
  small: {use: small_resnet, width: 8}
steps:
  - {use: train, name: teacher, inputs: {model: large}, budget: {epochs: 20}}
  - use: distill
    name: student
    inputs: {model: small, teacher: teacher}
    objective:
      - {use: kd, weight: 0.9, temperature: 4.0}
      - {use: cross_entropy, weight: 0.1}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run's folder and returns it."""

    def run(results: dict[str, Any], lines: list[dict[str, Any]] | None = None, *, name: str = "digits",
            recipe: str = RECIPE) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if lines is not None:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "log.jsonl").write_text(text, encoding="utf-8")
        return folder

    return run


@pytest.fixture
def records() -> Any:
    """The makers of records: `records.digits(seeds)`, `records.regression()`, `records.log(seeds)`, ..."""

    class Records:
        digits = staticmethod(digits)
        regression = staticmethod(regression)
        log = staticmethod(log)
        model = staticmethod(model)
        latency = staticmethod(latency)
        confusion = staticmethod(confusion)

    return Records
