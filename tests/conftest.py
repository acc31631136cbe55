"""Fixtures shared by all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("decoct", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("decoct")  # a machine that is busy fails no test

sys.path.insert(0, str(Path(__file__).parent))  # tiny.py, the recipes that tests share


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep what they cache apart from the user's, unless DECOCT_CACHE names a folder."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("DECOCT_CACHE"):
            patch.setenv("DECOCT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
