"""The log of a run: the logs of its steps, joined; appended to while the run goes on, written whole at its end."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoct.artifact import Artifact, parse_json, sha256, unless_full, write_whole

if TYPE_CHECKING:
    from decoct.recipe.graph import Node

LOG = "log.jsonl"
_TRAINED = re.compile(r'\{"kind": "(\w+)", "step": (\d+)(?=, ")')
"""How training begins its records."""


def joined_log(nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> str:
    """The logs of the nodes that have an artifact, in order, each line with its step and seed."""
    return "".join(own_log(node, artifacts[node.id]) for node in nodes if node.id in artifacts)


def own_log(node: Node, artifact: Artifact) -> str:
    """The log of one node, each line with its step and seed; empty where it has none."""
    path = artifact.folder / LOG
    if not path.is_file():
        return ""
    front = json.dumps({"step": node.step.name, "seed": node.seed})[:-1]
    text = path.read_text(encoding="utf-8")
    named = _read if '"seed"' in text or '"step_number"' in text else _moved
    return "".join(named(line, front, path) + "\n" for line in text.splitlines())


def _moved(line: str, front: str, path: Path) -> str:
    """The line with step and seed in front; of one that begins as training's do, nothing else need be read."""
    found = _TRAINED.match(line)
    if found is None or not line.endswith("}"):
        return _read(line, front, path)
    return f'{front}, "step_number": {found[2]}, "kind": "{found[1]}"{line[found.end() :]}'


def _read(line: str, front: str, path: Path) -> str:
    record = parse_json(line, str(path), dict[str, Any])
    number = {"step_number": record.pop("step")} if "step" in record else {}
    return json.dumps({**json.loads(front + "}"), **number, **record})


class GrowingLog:
    """The log of a run under way; only what steps add is written, and of several that were skipped all at once.

    The log of each step is read once. After a kill the file may end amid a line, as any that is appended to; the run
    that goes on writes it anew.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        self.begun = False
        self.waiting: list[str] = []
        self.written = hashlib.sha256()

    def add(self, node: Node, artifact: Artifact) -> None:
        """Takes in the log of a node that is done."""
        self.waiting.append(own_log(node, artifact))

    def write(self) -> None:
        """Brings the file up to date; the first time it is written whole, in place of an earlier run's."""
        content, self.waiting = "".join(self.waiting).encode(), []
        self.written.update(content)
        if not self.begun:
            write_whole(self.path, content)
        elif content:
            self._append(content)
        self.begun = True

    def finish(self, nodes: Sequence[Node], artifacts: Mapping[str, Artifact]) -> None:
        """Leaves the whole log of these nodes; it is joined once more where another has changed the file."""
        self.write()
        if sha256(self.path) != self.written.hexdigest():
            write_whole(self.path, joined_log(nodes, artifacts))

    def _append(self, content: bytes) -> None:
        with unless_full(self.path, len(content)), self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
