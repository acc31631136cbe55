"""Quantization schemes, one a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue("quantization scheme", {})
