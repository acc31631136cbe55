"""Refinements: what is done to a teacher's answer before a term hears it, one method a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "refinement",
    {
        "attention": "decoct.objectives.refine.attention:AttentionWeighting",
        "confidence": "decoct.objectives.refine.confidence:ConfidenceFilter",
        "correct": "decoct.objectives.refine.correct:LabelCorrection",
        "entropy": "decoct.objectives.refine.entropy:EntropyFilter",
        "gradient": "decoct.objectives.refine.gradient:GradientWeighting",
        "smooth": "decoct.objectives.refine.smooth:TeacherSmoothing",
    },
)
