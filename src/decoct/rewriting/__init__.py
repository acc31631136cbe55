"""Rewriting schemes: layers replaced by smaller ones, one scheme a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "rewriting scheme",
    {
        "grouped_attention": "decoct.rewriting.grouped_attention:GroupedAttention",
        "low_rank": "decoct.rewriting.low_rank:LowRank",
        "separable": "decoct.rewriting.separable:Separable",
    },
)
