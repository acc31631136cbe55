"""What steps write down as JSON: the names of the files and their shapes; torch is not needed to read them."""

from __future__ import annotations

from typing import Any

from decoct.artifact import Described, FileName, Strict

REPORT, SEARCHED, EXPORTED, RECORDS = "compression.json", "search.json", "exported.json", "records.json"
SPEED = "speed.json"
"""How a file in integers compares with its float file on the machine that wrote it; apart, for times are never equal
twice and the artifact's hash is."""


class _Verified(Strict):
    max_abs_diff: float | None = None
    mean_abs_diff: float | None = None


class _Quantization(Strict):
    facts: dict[str, Any] = {}
    scheme: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    changes: list[Any] = []


class Exported(Strict):
    """Shape of exported.json."""

    file: FileName
    file_bytes: int
    side: str
    target: Described
    parameters: int | None
    macs: int | None = None
    verified: _Verified
    quantization: _Quantization = _Quantization()
    audit: dict[str, Any] | None = None
    budgets: dict[str, Any] = {}


class Timed(Strict):
    """Shape of speed.json."""

    ratio: float
    file_ms: float
    float_ms: float
    file_bytes: int
    float_bytes: int
    noisy: bool = False
    words: list[str] = []


class Report(Strict):
    """Shape of compression.json."""

    step: str = ""
    scheme: Described
    recover: Described
    before: dict[str, Any]
    after: dict[str, Any]
    changes: list[dict[str, Any]]


class _Try(Strict):
    value: float
    budgets: dict[str, Any]


class Searched(Strict):
    """Shape of search.json."""

    setting: str
    chosen: float
    tries: list[_Try]
    step: Any


class _Record(Strict):
    name: str
    step: str = ""


class Records(Strict):
    """Shape of records.json."""

    models: list[_Record]
    comparisons: list[dict[str, Any]] = []
    examples: dict[str, Any] = {}
    machine: dict[str, Any] = {}
