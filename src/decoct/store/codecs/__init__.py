"""Codecs: how a teacher's logits are kept on disk, one method a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "codec",
    {
        "dense": "decoct.store.codecs.dense:DenseCodec",
        "top_k": "decoct.store.codecs.top_k:TopKCodec",
    },
)
