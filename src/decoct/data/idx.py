"""The IDX format of MNIST and its kin, read with every bound checked (LeCun, Cortes, Burges 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from decoct.data.files import read_bytes
from decoct.errors import DataError


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of an IDX file, gzip or not.

    Layout: two zero bytes, 0x08 (unsigned byte), number of dimensions, each size as a big-endian uint32, the data.
    DataError names the file and what differs.
    """
    content = read_bytes(path)
    start = 4 + 4 * dimensions
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise DataError(
            f"{path}: starts with {content[:4].hex()}, an IDX file of {dimensions} dimensions with {expected.hex()}"
        )
    if len(content) < start:
        raise DataError(f"{path}: {len(content)} bytes end inside the header of {start} bytes")
    sizes = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
    wanted = start
    count = 1
    for size in sizes:
        count *= size
    wanted += count
    if len(content) != wanted:
        raise DataError(
            f"{path}: {len(content)} bytes, its header promises {wanted} ({'x'.join(map(str, sizes))} values)"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
