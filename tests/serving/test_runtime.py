"""decoct-runtime, the small distribution: it holds decoct's own program, and answers without torch and decoct."""

import json
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest

import decoct as dc

ROOT = Path(__file__).parents[2]


def built(folder: Path, kind: str, out: Path) -> Path:
    words = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = out.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from a source archive, as an index would hold both."""
    folder = tmp_path_factory.mktemp("runtime")
    archive = built(ROOT / "runtime", "sdist", folder / "sdist")
    import tarfile

    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return built(folder / archive.name.removesuffix(".tar.gz"), "wheel", folder / "wheel")


def test_it_holds_the_one_program_and_asks_for_little(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        own = (ROOT / "src/decoct/serving/predict.py").read_bytes()
        assert packed.read("decoct_runtime/predict.py") == own
        [name] = [each for each in packed.namelist() if each.endswith("METADATA")]
        metadata = Parser().parsestr(packed.read(name).decode())
    needed = metadata.get_all("Requires-Dist") or []
    assert {each.partition(">")[0] for each in needed} == {"numpy", "onnxruntime", "pillow", "tokenizers"}
    with (ROOT / "pyproject.toml").open("rb") as file:
        whole = tomllib.load(file)
    assert metadata["Version"] == whole["project"]["version"]
    bounds = set(whole["project"]["dependencies"] + whole["project"]["optional-dependencies"]["nlp"])
    assert set(needed) <= bounds


def test_it_answers_as_the_file_does(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(120, 2)).round(3)
    lines = [f"{a},{b},{'yes' if a + b > 0 else 'no'}" for a, b in rows]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c", *lines]))
    recipe = {
        "version": 1,
        "task": {"use": "tabular_classification"},
        "data": {"use": "csv", "path": str(tmp_path / "t.csv"), "target": "c"},
        "models": {"small": {"use": "mlp", "hidden": [4]}},
        "steps": [
            {"use": "train", "name": "student", "inputs": {"model": "small"}, "budget": {"steps": 5}},
            {"use": "export", "name": "student_onnx", "inputs": {"model": "student"}},
        ],
    }
    run = dc.Recipe.parse(recipe).run(tmp_path / "run")
    [folder] = run.folder.glob("*-student_onnx")
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['decoct'] = None; "
        f"sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        f"sys.argv = ['decoct-predict', '--json', '--model', {str(folder)!r}, {str(tmp_path / 't.csv')!r}]; "
        "runpy.run_module('decoct_runtime', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = [json.loads(each) for each in done.stdout.splitlines()]
    expected = dc.load(folder).predict(str(tmp_path / "t.csv"))
    assert [each["class"] for each in said] == [each["class"] for each in expected]
    assert len(said) == 120
