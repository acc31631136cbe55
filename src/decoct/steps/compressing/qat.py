"""QAT: a student learns with its weights and activations rounded as the shipped file will round them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from decoct.quantization.aware.fake_quantize import FakeQuantize
from decoct.spec import Choice
from decoct.steps.compressing.recovering import Recovering
from decoct.training.compression import Scheme


class QAT(Recovering):
    """Quantization-aware training: rounds a student's numbers as the file will, and lets it learn to live with that.

    `scheme`: where and how numbers are rounded. The result is a model still, with the same objective and teachers as
    elsewhere; train it further, or give it to export, which writes integers. Prune, share and rewrite before it.
    """

    use: ClassVar[str] = "qat"
    scheme: Annotated[Scheme, Choice("decoct.quantization.aware")] = FakeQuantize()
