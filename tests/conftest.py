"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tiny.py, the recipes that tests share


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, named by DECOCT_DATA; without it such tests skip, under CI they fail."""
    root = os.environ.get("DECOCT_DATA", "")
    if root and Path(root).is_dir():
        return Path(root)
    message = "DECOCT_DATA names no folder of data sets"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
