"""What models read: images, texts, words, tables; one kind a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "kind of input",
    {
        "images": "decoct.tasks.inputs.images:Images",
        "tables": "decoct.tasks.inputs.tables:Tables",
        "texts": "decoct.tasks.inputs.texts:Texts",
    },
)
