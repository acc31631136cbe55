"""Where data sets are on disk and how they get there."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from decoct.errors import DataError, ResourceError


def cache_folder(name: str) -> Path:
    """Where a downloaded data set is kept: under DECOCT_CACHE, else under the user's cache folder."""
    root = os.environ.get("DECOCT_CACHE")
    if root is None:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decoct")
    return Path(root) / name


def present(path: Path) -> Path:
    """The path itself; DataError if nothing is there."""
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"data.path={path}: nothing is there; give the path of the data on this machine")
    return path


def absent(use: str, wanted: str) -> DataError:
    """The error for data that are neither on disk nor to be downloaded; `wanted` says what `path` must hold."""
    return DataError(
        f"{use}: not on disk, and offline. Run once without --offline (it is kept in {cache_folder(use)}), "
        f"or give data.path={wanted}"
    )


def failed(use: str, error: BaseException, wanted: str) -> DataError:
    """The error for a download that did not work."""
    return DataError(
        f"{use}: the download failed ({type(error).__name__}: {error}); try again, or give data.path={wanted}"
    )


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed if it is gzip; DataError names the file where it is damaged."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip ({error}); get the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_text(path: Path) -> str:
    """A file's UTF-8 text, decompressed if it is gzip."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None


def from_hub(use: str, repository: str, names: dict[str, str], wanted: str, *, offline: bool) -> dict[str, Path]:
    """Files of a Hugging Face data set repository, by the names given; what is in its cache needs no network."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ResourceError(
            f"{use}: huggingface_hub is missing; pip install huggingface_hub, or give data.path={wanted}"
        ) from None
    found = {}
    for name, file in names.items():
        try:
            found[name] = Path(
                hf_hub_download(
                    repository, file, repo_type="dataset", cache_dir=cache_folder(use), local_files_only=offline
                )
            )
        except LocalEntryNotFoundError as error:
            raise (absent(use, wanted) if offline else failed(use, error, wanted)) from None
        except (HfHubHTTPError, OSError) as error:
            raise failed(use, error, wanted) from None
    return found
