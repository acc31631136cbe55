"""Locks, bounds, workflows and what else others rely on: they agree with one another and name public hosts alone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import decoct

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [
    Requirement(each) for each in [*PROJECT["dependencies"], *(each for some in EXTRAS.values() for each in some)]
]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
HOSTS = {"pypi.org", "files.pythonhosted.org"}


def pinned(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, _, version in pins}


def urls(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in urls(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in urls(inner)]
    return [value] if isinstance(value, str) and "://" in value else []


def test_the_lock_names_public_hosts_alone_and_hashes_every_file() -> None:
    text = (ROOT / "uv.lock").read_text(encoding="utf-8")
    assert {urlsplit(each).hostname for each in urls(LOCK)} == HOSTS
    assert set(re.findall(r"\w+://([^/\"]+)", text)) == HOSTS
    for package in LOCK["package"]:
        source = package["source"]
        assert source in ({"registry": "https://pypi.org/simple"}, {"editable": "."}), package["name"]
        for file in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]), file["url"]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_are_names_and_versions_without_a_place(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert all(Version(each) for each in pinned(name).values())


def test_the_lock_has_the_versions_that_everything_is_tested_with() -> None:
    locked: dict[str, set[str]] = {}
    for package in LOCK["package"]:
        locked.setdefault(package["name"], set()).add(package["version"])
    once = {name: versions for name, versions in locked.items() if len(versions) == 1}
    pins = pinned("constraints.txt")
    assert set(pins) <= set(locked)
    other = {name: each for name, each in pins.items() if name in once and once[name] != {each}}
    assert set(other) <= {"pillow"}  # trackio holds it back
    assert locked["decoct"] == {PROJECT["version"]}


APART = ("mlflow-skinny", "trackio", "wandb")
"""Extras that the development environment has not."""


def test_every_lower_bound_is_what_the_lowest_run_installs() -> None:
    pins = pinned("constraints-lowest.txt")
    for each in DIRECT:
        if each.name == "decoct" or each.name in APART:
            continue
        [bound] = each.specifier
        assert bound.operator == ">=", each
        lowest, named = Version(pins[canonicalize_name(each.name)]), Version(bound.version)
        assert lowest.release[: len(named.release)] == named.release, f"{each}: the lowest run installs {lowest}"
        assert Version(pinned("constraints.txt")[canonicalize_name(each.name)]) >= lowest


def test_pre_commit_has_the_tools_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    remote = {each["repo"].rpartition("/")[2]: each for each in config["repos"] if each["repo"] != "local"}
    assert set(remote) == {"ruff-pre-commit"}
    assert remote["ruff-pre-commit"]["rev"] == f"v{pinned('constraints.txt')['ruff']}"
    local = [hook for each in config["repos"] if each["repo"] == "local" for hook in each["hooks"]]
    assert [each["entry"] for each in local] == ["make lint"]


def targets() -> set[str]:
    return set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_workflow_and_image_call_make_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in runs
    asked = {word for line in runs if line.startswith("make ") for word in line.split()[1:]}
    assert asked == {"test-lowest", "docs", "sbom"}
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    asked |= set(re.findall(r"^RUN make (\S+)", image, re.MULTILINE))
    stamp = {"$(STAMP)" if each == ".venv/.installed" else each for each in asked}
    assert stamp - {"$(STAMP)"} <= targets()
    assert "STAMP := .venv/.installed" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}


def test_the_citation_is_of_this_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "type"} <= set(found)
    assert found["version"] == decoct.__version__ == PROJECT["version"]
    assert found["license"] == PROJECT["license"]
    assert found["authors"] == PROJECT["authors"]


@pytest.mark.parametrize("page", ["AGENTS.md", "SECURITY.md", "CONTRIBUTING.md", "docs/stability.md"])
def test_pages_name_files_and_targets_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for quoted in re.findall(r"`([^`\n]+)`", text):
        words = quoted.split()
        if words[0] == "make":
            assert set(words[1:]) - {".venv/.installed"} <= targets(), quoted
        elif re.fullmatch(r"(?:docs|tests|benchmarks|recipes|\.github)/[\w./-]*|[\w-]+\.(?:txt|toml|lock|cff)", quoted):
            assert (ROOT / quoted).exists(), quoted
