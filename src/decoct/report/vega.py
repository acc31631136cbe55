"""The script that draws a page's charts, prepared once for each version of the library that it comes from."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from decoct.artifact import write_whole
from decoct.data.files import cache_folder
from decoct.errors import ResourceError


@cache
def vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script that sets `window.vegaEmbed`; kept in the cache folder."""
    kept = cache_folder("page") / f"vega-{metadata.version('vl-convert-python')}.js"
    with suppress(OSError, ValueError, RuntimeError):
        return _read(kept)
    script = _bundled()
    with suppress(OSError, ResourceError, RuntimeError):  # without it the next page takes a second longer
        _keep(kept, script)
    return script


def _bundled() -> str:
    import vl_convert

    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub wants what has a default
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"{{{bundle}}}"


def _keep(path: Path, script: str) -> None:
    write_whole(path, f"{_digest(script)}\n{script}")
    path.chmod(0o600)


def _read(path: Path) -> str:
    """A script that this user kept; ValueError where another could have written it, or it is not whole."""
    facts = path.stat()
    if os.name == "posix" and (facts.st_uid != os.getuid() or facts.st_mode & 0o022):
        raise ValueError(f"{path} may have been written by others")
    digest, _, script = path.read_text(encoding="utf-8").partition("\n")
    if digest != _digest(script):
        raise ValueError(f"{path} is damaged")
    return script


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
