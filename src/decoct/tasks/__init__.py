"""Tasks: how samples become batches, how a model is called, its supervised loss, its metrics."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "task",
    {
        "image_classification": "decoct.tasks.image_classification:ImageClassification",
        "text_classification": "decoct.tasks.text_classification:TextClassification",
        "token_classification": "decoct.tasks.token_classification:TokenClassification",
        "tabular_classification": "decoct.tasks.tabular_classification:TabularClassification",
        "multi_task": "decoct.tasks.multi_task:MultiTask",
        "language_model": "decoct.tasks.language_model:LanguageModel",
        "segmentation": "decoct.tasks.segmentation:Segmentation",
        "detection": "decoct.tasks.detection:Detection",
        "regression": "decoct.tasks.regression:Regression",
    },
)
