"""Recorded numbers: how they are written, and how close new ones must come."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from golden_inside import this_machine

FOLDER = Path(__file__).parent
TOLERANCE: Mapping[str, tuple[float, float]] = {"float32": (2e-3, 1e-5), "bf16": (1e-1, 1e-2), "int8": (0.0, 0.05)}
"""Relative and absolute, for machines other than the one that recorded; on that one every bit must be equal. Steps that
end in the name of a kind are of that kind, all others float32. Processors without AVX-512 sum in another order, which
a few steps of training and bins of a calibration error enlarge to 7e-4, and add bfloat16 by other kernels."""


def fingerprint() -> str:
    """The machine by a few digits: where they are equal, so is every bit."""
    return hashlib.sha256(this_machine().encode()).hexdigest()[:12]


def recorded(name: str) -> Any:
    """The values that a file holds."""
    return _read(name)["values"]


def bit_for_bit(name: str) -> bool:
    """Whether a file was recorded on a machine that rounds as this one does."""
    return bool(_read(name)["machine"] == fingerprint())


def record(name: str, values: Any) -> None:
    """Writes a file of numbers and by which machine they were made; the innermost values one a line."""
    text = "".join(_lines({"machine": fingerprint(), "values": values}))
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _lines(value: Any, depth: int = 0) -> Iterator[str]:
    whole = json.dumps(value, allow_nan=False)
    if len(whole) + depth < 110 or not isinstance(value, dict | list) or (depth > 2 and "[{" not in whole):
        yield whole
        return
    pairs = [(f"{json.dumps(key)}: ", each) for key, each in value.items()] if isinstance(value, dict) else []
    yield "{" if pairs else "["
    for number, (key, each) in enumerate(pairs or [("", each) for each in value]):
        yield ("," if number else "") + "\n" + " " * (depth + 1) + key
        yield from _lines(each, depth + 1)
    yield "\n" + " " * depth + ("}" if pairs else "]")


LATER = ("mse", "taylor_cross_entropy")
"""Scores that came after these numbers were recorded."""


def differences(found: Any, golden: Any, exact: bool, place: str = "") -> list[str]:
    """Where `found` is not what was recorded, one sentence each; scores that came later are none."""
    if isinstance(golden, dict) and isinstance(found, dict):
        names = list(dict.fromkeys([*golden, *found]))
        lone = {
            name: "recorded" if name in golden else "found" for name in names if (name in golden) != (name in found)
        }
        lone = {name: where for name, where in lone.items() if where == "recorded" or name.rpartition(".")[2] not in LATER}
        names = [name for name in names if name in golden or name.rpartition(".")[2] not in LATER]
        both = [name for name in names if name not in lone]
        return [f"{place}/{name}: only {where}" for name, where in lone.items()] + [
            line for name in both for line in differences(found[name], golden[name], exact, f"{place}/{name}")
        ]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(found, golden))
        return [line for number, (a, b) in pairs for line in differences(a, b, exact, f"{place}/{number}")]
    kind = next((each for each in TOLERANCE if f"_{each}/" in place), "float32")
    if found == golden or (not exact and _close(found, golden, kind)):
        return []
    return [f"{place}: {found!r}, recorded {golden!r}"]


def _close(found: Any, golden: Any, kind: str) -> bool:
    relative, absolute = TOLERANCE[kind]
    if not (isinstance(found, float) and isinstance(golden, float)):
        return False
    return math.isclose(found, golden, rel_tol=relative, abs_tol=absolute)
