"""Recipes as text: YAML read with a place for every setting, errors that name it, and YAML or Python written back.

The rules are those of a constructor, not of YAML 1.1: `1e-4` is a number, `no` and `1:30` are text, only `true` and
`false` are booleans, keys are text and given once, tags are refused, aliases are expanded within limits.
"""

from decoct.recipe.file.overrides import override
from decoct.recipe.file.places import Located, Marked, Place, locate
from decoct.recipe.file.python import as_python
from decoct.recipe.file.reading import read, read_file
from decoct.recipe.file.scalars import scalar
from decoct.recipe.file.writing import dump

__all__ = ["Located", "Marked", "Place", "as_python", "dump", "locate", "override", "read", "read_file", "scalar"]
