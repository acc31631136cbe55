"""What an ONNX file is made of: itself, and the external data beside it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from decoct.artifact import sha256
from decoct.errors import IntegrityError
from decoct.models.onnx_file import file_hash, files_of, open_session
from decoct.models.onnx_model import OnnxFile
from decoct.teachers.onnx import unchanged


def written(folder: Path, *, external: bool = True) -> Path:
    weight = numpy_helper.from_array(np.arange(512, dtype=np.float32).reshape(8, 64), "weight")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = folder / "big.onnx"
    onnx.save(model, path, save_as_external_data=external, location="big.data", size_threshold=0)
    return path


def test_external_data_counts(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert files_of(path) == [path, tmp_path / "big.data"]
    model = OnnxFile(path=path)
    before = model.fingerprint()
    content = bytearray((tmp_path / "big.data").read_bytes())
    content[7] ^= 1
    open_session(path)
    with pytest.raises(IntegrityError, match="changed while it taught"), unchanged(path):
        (tmp_path / "big.data").write_bytes(content)
    assert model.fingerprint() != before


def test_a_file_without_external_data_keeps_its_hash(tmp_path: Path) -> None:
    path = written(tmp_path, external=False)
    assert file_hash(path) == sha256(path)


def test_external_data_outside_the_folder_or_absent_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "big.data").rename(tmp_path / "moved.data")
    with pytest.raises(IntegrityError, match=r"'big\.data' is missing"):
        file_hash(path)
    inner = tmp_path / "inner"
    inner.mkdir()
    for location in ("../moved.data", str(tmp_path / "moved.data")):
        model = onnx.load(path, load_external_data=False)
        entry = next(each for each in model.graph.initializer[0].external_data if each.key == "location")
        entry.value = location
        (inner / "big.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(IntegrityError, match="outside its folder"):
            file_hash(inner / "big.onnx")


def test_what_is_no_onnx_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"\xff\xff\xff\xff nothing")
    with pytest.raises(IntegrityError, match="no readable ONNX file"):
        file_hash(tmp_path / "no.onnx")


def test_sums_of_int8_products_do_not_overflow(tmp_path: Path) -> None:
    """255 · 127 · 64 exactly, also where the processor adds two products in 16 bits."""
    x, weight = np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "weight"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, 16))],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    found = open_session(path)({"x": x})["y"]
    np.testing.assert_array_equal(found, x.astype(np.int64) @ weight.astype(np.int64))


def test_a_weight_that_serves_twice_does_not_overflow_either(tmp_path: Path) -> None:
    """Two layers of one weight, each with its own DequantizeLinear, as in layers shared across depth."""
    x, weight = np.full((1, 64), 255, np.float32), np.full((64, 64), 127, np.int8)
    zero = {"z": np.uint8(0), "wz": np.int8(0), "one": np.float32(1), "small": np.float32(1 / 8192)}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in zero.items()]
    quantized = [
        helper.make_node("QuantizeLinear", ["x", "one", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "small", "wz"], ["w1"]),
        helper.make_node("MatMul", ["xd", "w1"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "one", "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "one", "z"], ["ad"]),
        helper.make_node("DequantizeLinear", ["w", "small", "wz"], ["w2"]),
        helper.make_node("MatMul", ["ad", "w2"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "one", "z"], ["bq"]),
        helper.make_node("DequantizeLinear", ["bq", "one", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 64)) for name in ("x", "y")]
    graph = helper.make_graph(quantized, "g", ends[:1], ends[1:], [*constants, numpy_helper.from_array(weight, "w")])
    path = tmp_path / "twice.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    found = open_session(path)({"x": x})["y"]
    once = np.clip(np.rint(x.astype(np.float64) @ weight.astype(np.float64) / 8192), 0, 255)
    expected = np.clip(np.rint(once @ weight.astype(np.float64) / 8192), 0, 255)
    assert 0 < expected.max() < 255
    np.testing.assert_array_equal(found, expected)
