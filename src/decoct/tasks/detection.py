"""Detection of objects in images."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.boxes import Boxes
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.images import Images


class Detection(Images, Boxes, Joined):
    """Boxes around what an image shows, each with a class and a score; uint8 pixels in.

    What models read is as for image_classification, but of one size for all (`size` and `teacher_size` stay out:
    boxes are in pixels of the image; data.size brings images and boxes to one); where `augment` moves an image, its
    boxes move with it. `classes`: names, from the data where left out; `above`, `overlap` and `most`: what is kept of
    a model's boxes. mAP, as COCO defines it, is the main metric.
    """

    use: ClassVar[str] = "detection"
    reads: ClassVar[type[Inputs]] = Images
    answers: ClassVar[type[Answer]] = Boxes
