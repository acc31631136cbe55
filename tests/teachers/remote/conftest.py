"""Puts this folder on the path, so that worker processes find the nets and teachers of these tests."""

import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import far_toys


@pytest.fixture(autouse=True)
def _children_from_before() -> None:
    """What other tests left running, as a browser, is not laid at this test's door."""
    far_toys.BEFORE.clear()
    far_toys.BEFORE.update(each.pid for each in psutil.Process().children())
