"""Estimators of scikit-learn, each described by a Spec, and as modules that export to ONNX."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "estimator",
    {
        "extra_trees": "decoct.models.estimators.forests:ExtraTrees",
        "gradient_boosting": "decoct.models.estimators.boosting:GradientBoosting",
        "linear": "decoct.models.estimators.linear:Ridge",
        "logistic_regression": "decoct.models.estimators.linear:LogisticRegression",
        "random_forest": "decoct.models.estimators.forests:RandomForest",
    },
)
