"""Takes the program from decoct's own source, so that there is one of it."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROGRAM = "decoct_runtime/predict.py"


class OneProgram(BuildHookInterface):  # type: ignore[type-arg]
    """Puts `decoct/serving/predict.py` into the package; a source archive holds it already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes an archive."""
        source = Path(self.root).parent / "src" / "decoct" / "serving" / "predict.py"
        if source.is_file():
            build_data["force_include"][str(source)] = PROGRAM
        elif not (Path(self.root) / PROGRAM).is_file():
            raise FileNotFoundError(f"{source} is missing; build decoct-runtime inside decoct's repository")
