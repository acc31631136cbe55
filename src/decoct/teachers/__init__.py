"""Teachers: predictors that are frozen, and the contract that keeps them so."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "teacher",
    {
        "frozen": "decoct.teachers.frozen:Frozen",
        "estimator": "decoct.teachers.estimator:EstimatorTeacher",
        "http": "decoct.teachers.remote.over_http:HttpTeacher",
        "black_box": "decoct.teachers.remote.black_box:BlackBoxTeacher",
        "process": "decoct.teachers.remote.process:ProcessTeacher",
        "ray": "decoct.teachers.remote.on_ray:RayTeacher",
        "onnx": "decoct.teachers.onnx:OnnxTeacher",
        "stored": "decoct.teachers.stored:StoredTeacher",
    },
)
