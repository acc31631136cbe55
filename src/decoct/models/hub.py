"""Repositories of the Hugging Face hub: a folder of plain files at one revision, from the cache or the network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from decoct.errors import DataError, DecoctError, RecipeError

HUB = "huggingface.co"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FILES = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model")
"""What is downloaded: settings, vocabularies and weights. No code, and no pickled weights."""


def snapshot(name: str, revision: str | None = None, *, extra: str = "nlp") -> tuple[Path, str]:
    """The folder of a repository's files and its commit: of `revision` (a branch, tag or commit), else of `main`.

    Asked of the hub where it can be reached, else taken from its cache (HF_HOME). DataError says how to get it.
    """
    from decoct.models.checks import reachable, require  # which bring torch

    if not NAME.fullmatch(name) or ".." in name:
        raise RecipeError(f"name: {name!r} is no name of a repository on the hub; give one as OWNER/NAME, or a `path`")
    hub, errors = require("huggingface_hub", extra), require("huggingface_hub.errors", extra)
    cached = _cached(hub, errors, name, revision)
    if cached is not None and _is_commit(revision):
        return cached, cached.name
    host = urlparse(os.environ.get("HF_ENDPOINT", "")).hostname or HUB
    reason = f"{host} cannot be reached"
    if reachable(host):
        try:
            commit = str(revision if _is_commit(revision) else hub.HfApi().model_info(name, revision=revision).sha)
            _refuse_unsafe(hub, name, commit)
            return Path(hub.snapshot_download(name, revision=commit, allow_patterns=list(FILES))), commit
        except errors.RepositoryNotFoundError:
            raise DataError(
                f"{name!r} is no folder here and no public repository on {host}; check the name, or give the folder"
            ) from None
        except DecoctError:
            raise
        except (OSError, ValueError, errors.HfHubHTTPError) as error:
            reason = str(error).strip().partition("\n")[0]
    if cached is None:
        at = f" --revision {revision}" if revision else ""
        raise DataError(
            f"the model {name!r} is no folder here, is not in the cache of the hub, and was not downloaded ({reason}); "
            f"run `hf download {name}{at}` where there is a network and copy its cache (HF_HOME) here, or copy its "
            "folder and give that"
        )
    return cached, cached.name


def _cached(hub: Any, errors: Any, name: str, revision: str | None) -> Path | None:
    """The folder in the cache, where it holds settings and weights."""
    try:
        found = Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=True))
    except (OSError, ValueError, errors.LocalEntryNotFoundError):
        return None
    return found if (found / "config.json").is_file() and any(found.glob("*.safetensors")) else None


def _is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _refuse_unsafe(hub: Any, name: str, commit: str) -> None:
    """Before anything is downloaded: DataError where the weights are there as a pickle alone."""
    files = hub.HfApi().list_repo_files(name, revision=commit)
    if not any(each.endswith(".safetensors") for each in files):
        raise DataError(without_safetensors(f"the repository {name}", files))


def without_safetensors(what: str, files: list[str]) -> str:
    """The sentence for weights that are no safetensors, with the command that converts them."""
    pickled = [each for each in files if each.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if not pickled:
        return (
            f"{what} holds no *.safetensors; save the model with save_pretrained(FOLDER, safe_serialization=True), or "
            "download its model.safetensors into the folder"
        )
    return (
        f"{what} holds no *.safetensors; its {pickled[0]} is a pickle, which can run code as it is read, and is left "
        'alone. Where you trust it, write it anew: python -c "from transformers import AutoModel as M; '
        "M.from_pretrained('FOLDER').save_pretrained('NEW')\" (with the class of config.json's `architectures` in the "
        "place of AutoModel, so that its head stays; for weights of torch alone safetensors.torch.save_file), and copy "
        "its tokenizer files along"
    )
