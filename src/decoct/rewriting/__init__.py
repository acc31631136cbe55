"""Rewriting schemes: layers replaced by smaller ones, one scheme a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue("rewriting scheme", {})
