"""How many samples are scored at once."""

from decoct.steps.learning.batches import evaluated_at_once
from decoct.tasks.image_classification import ImageClassification
from decoct.tasks.segmentation import Segmentation


def test_maps_are_scored_in_batches_that_fit_and_pictures_as_ever() -> None:
    """12 classes on 360 x 480: 2.6 million numbers a sample, 25 of them in 2^26."""
    pictures = ImageClassification(shape=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3, classes=("a", "b"))
    names = tuple(map(str, range(12)))
    shape = (3, 360, 480)
    maps = Segmentation(shape=shape, mean=(0.0,) * 3, std=(1.0,) * 3, classes=names, grid=shape[1:])
    huge = maps.replace(shape=(3, 9000, 9000), grid=(9000, 9000))
    assert evaluated_at_once(pictures) == 256
    assert evaluated_at_once(maps) == 2**26 // ((3 + 12) * 360 * 480) == 25
    assert evaluated_at_once(huge) == 1
