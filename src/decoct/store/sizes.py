"""Sizes: what a store takes on the disk, said in words, and whether the disk has room."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decoct.artifact import size_text
from decoct.errors import ResourceError

DISK_RESERVE = 1.1
"""How much more than the estimate must be free on the disk."""
ROW_BYTES = 36
"""Of every row beside the logits: what is seen, its key and view, and its place in the index."""


def summary(found: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """One line on a store: its size, and what compression cost."""
    views = described["views"]["count"]
    text = f"{found['rows']:,} answers" + (f" in {views} views" if views > 1 else "")
    text += f", {size_text(found['bytes'])}, {found['bytes_per_sample']:.0f} bytes each"
    if found["kl"] is not None:
        text += f"; kept mass {found['kept_mass']:.4f}, KL lost {found['kl']:.2g} nats"
    return f"{text}; teacher {described['teacher']['fingerprint'][:16]}"


def refuse_small_disk(folder: Path, needed: int, name: str) -> None:
    """ResourceError where the disk under a folder has less room than a store needs."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * DISK_RESERVE > free:
        raise ResourceError(
            f"{name}: the store needs about {size_text(needed)}, and {place} has {size_text(free)} free; free some, "
            "give another folder, or keep less: fewer views, keep: {use: top_k, k: 16}, dtype: uint8"
        )
