"""Teachers: predictors that are frozen, and the contract that keeps them so."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "teacher",
    {
        "frozen": "decoct.teachers.frozen:Frozen",
        "estimator": "decoct.teachers.estimator:EstimatorTeacher",
        "http": "decoct.teachers.elsewhere.over_http:HttpTeacher",
        "black_box": "decoct.teachers.elsewhere.black_box:BlackBoxTeacher",
        "process": "decoct.teachers.elsewhere.process:ProcessTeacher",
        "ray": "decoct.teachers.elsewhere.on_ray:RayTeacher",
        "onnx": "decoct.teachers.onnx:OnnxTeacher",
        "stored": "decoct.teachers.stored:StoredTeacher",
    },
)
