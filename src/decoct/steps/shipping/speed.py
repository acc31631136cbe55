"""Speed: a file in integers beside its float file, in one interleaved measurement on this machine."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decoct.meters.latency import Latency, measure
from decoct.models.onnx_file import open_session
from decoct.quantization.floating import in_integers, without_quantizers
from decoct.targets.onnx import FILE, save

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, np.ndarray]
Timer = Callable[[Mapping[str, Path], Feed], Mapping[str, Latency]]
"""Latencies of files by name, on the first sample of a feed, all measured in turn."""
REPEATS, WARMUP, SECONDS = 60, 5, 2.0
SLOWER = 1.1
"""A file that takes so many times as long as its float file is called slower: less may be chance."""


def timed(files: Mapping[str, Path], feed: Feed) -> Mapping[str, Latency]:
    """A short measurement on one thread, interleaved."""
    calls = {name: _call(path, feed) for name, path in files.items()}
    return measure(calls, repeats=REPEATS, warmup=WARMUP, seconds=SECONDS)


@dataclass(frozen=True)
class Speed:
    """A quantized file beside its float file: medians of one call with one sample on one thread, and their bytes."""

    float_ms: float
    file_ms: float
    float_bytes: int
    file_bytes: int
    noisy: bool = False

    @property
    def ratio(self) -> float:
        """How many times as long as the float file it takes."""
        return self.file_ms / self.float_ms if self.float_ms else 1.0

    def words(self) -> list[str]:
        """What did not pay; empty for a file that is neither slower nor larger.

        >>> Speed(1.0, 1.9, 2000, 1000).words(), Speed(1.0, 0.5, 1000, 1200).words()
        (['slower than float: 1.9 ×'], ['larger than float: 1.2 ×'])
        """
        found = []
        if self.ratio >= SLOWER:
            found.append(f"slower than float: {self.ratio:.1f} ×{' (measured with noise)' if self.noisy else ''}")
        if self.file_bytes > self.float_bytes:
            found.append(f"larger than float: {self.file_bytes / self.float_bytes:.3g} ×")
        return found

    def data(self) -> dict[str, Any]:
        """As it stands in speed.json."""
        return {
            "float_ms": self.float_ms,
            "file_ms": self.file_ms,
            "ratio": self.ratio,
            "float_bytes": self.float_bytes,
            "file_bytes": self.file_bytes,
            "threads": 1,
            "batch": 1,
            "noisy": self.noisy,
            "words": self.words(),
        }


def against_its_float(path: Path, floating: onnx.ModelProto, feed: Feed, timer: Timer = timed) -> Speed:
    """Runs a quantized file and the float graph that it was made from in turn, on the first sample of `feed`.

    A graph that had its quantizers before is timed without them.
    """
    if in_integers(floating):
        floating = without_quantizers(floating)
    with tempfile.TemporaryDirectory() as folder:
        before = save(floating, Path(folder) / FILE)
        found = timer({"float": before, "file": path}, feed)
        sizes = before.stat().st_size, path.stat().st_size
    noisy = any(each.noisy for each in found.values())
    return Speed(found["float"].p50_ms, found["file"].p50_ms, *sizes, noisy)


def _call(path: Path, feed: Feed) -> Callable[[], Any]:
    session, one = open_session(path, threads=1), {name: value[:1] for name, value in feed.items()}
    return lambda: session(one)


def warn_of_cost(where: str, speed: Speed, *, stacklevel: int = 3) -> None:
    """Warns of a file in integers that is slower or larger than its float file."""
    if speed.words():
        warnings.warn(
            f"{where}: the file in integers is {', '.join(speed.words())} ({speed.file_ms:.3g} ms against "
            f"{speed.float_ms:.3g} ms, {speed.file_bytes} bytes against {speed.float_bytes}, one sample on one thread "
            "of this machine); ship the float file, or quantize with keep_float: auto, which keeps in float what is "
            "faster so",
            stacklevel=stacklevel,
        )
