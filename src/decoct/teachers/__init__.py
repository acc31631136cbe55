"""Teachers: predictors that are frozen, and the contract that keeps them so."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "teacher",
    {
        "frozen": "decoct.teachers.frozen:Frozen",
        "estimator": "decoct.teachers.estimator:EstimatorTeacher",
        "process": "decoct.teachers.elsewhere.process:ProcessTeacher",
        "ray": "decoct.teachers.elsewhere.on_ray:RayTeacher",
        "onnx": "decoct.teachers.onnx:OnnxTeacher",
        "stored": "decoct.teachers.stored:StoredTeacher",
    },
)
