"""The script of a page: prepared once, read again only where it is whole and this user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoct.report.vega import vega

prepared = vega.__wrapped__


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a first page kept."""
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path))
    prepared()
    [path] = (tmp_path / "page").iterdir()
    return path


def with_digest_of(path: Path, script: str) -> None:
    import hashlib

    path.write_text(f"{hashlib.sha256(script.encode()).hexdigest()}\n{script}")


def test_the_kept_script_is_the_prepared_one_and_is_what_the_next_page_takes(kept: Path) -> None:
    first = prepared()
    assert "vegaEmbed" in first
    assert kept.read_text().partition("\n")[2] == first
    with_digest_of(kept, "kept")
    assert prepared() == "kept"


def test_a_damaged_or_foreign_script_is_prepared_again(kept: Path) -> None:
    first = prepared()
    kept.write_text(kept.read_text()[:-1])
    assert prepared() == first
    with_digest_of(kept, "by somebody")
    kept.chmod(0o666)
    assert prepared() == first
    assert prepared() == kept.read_text().partition("\n")[2]
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_page_needs_no_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DECOCT_CACHE", str(tmp_path / "file"))
    assert "vegaEmbed" in prepared()
