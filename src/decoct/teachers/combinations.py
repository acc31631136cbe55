"""The table of combinations of several teachers, apart from their code so that it is listed without torch."""

from decoct.spec import Catalogue

CATALOGUE = Catalogue("combination", {"ensemble": "decoct.teachers.ensemble:Ensemble"})
