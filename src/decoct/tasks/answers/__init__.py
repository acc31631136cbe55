"""What models answer: classes, numbers, tags, boxes; one kind a file."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue(
    "kind of answer",
    {
        "classes": "decoct.tasks.answers.classes:Classes",
        "numbers": "decoct.tasks.answers.numbers:Numbers",
        "row_classes": "decoct.tasks.answers.classes:RowClasses",
    },
)
