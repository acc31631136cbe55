"""Segmentation of images."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.maps import Maps
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.images import Images


class Segmentation(Images, Maps, Joined):
    """One class for each pixel of an image: uint8 pixels in, a map of class logits of the same size out.

    What models read is as for image_classification (`shape`, `mean`, `std`, `size`, `teacher_size`, `augment` ...);
    where `augment` moves an image, its mask moves with it. `classes`: names, from the data where left out; `ignored`:
    the id of pixels that belong to no class; `grid` (height, width) of the answer, that of the images where left out:
    what a model gives at another size is brought to it. The mean IoU is the main metric.
    """

    use: ClassVar[str] = "segmentation"
    reads: ClassVar[type[Inputs]] = Images
    answers: ClassVar[type[Answer]] = Maps
