"""What stands beside an exported file: exported.json."""

from __future__ import annotations

from typing import Any

from decoct.artifact import Described, FileName, Strict

RECORD = "exported.json"


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
