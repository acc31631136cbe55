"""Image classification."""

from __future__ import annotations

from typing import ClassVar

from decoct.tasks.answers.base import Answer
from decoct.tasks.answers.classes import Classes
from decoct.tasks.base import Joined
from decoct.tasks.inputs.base import Inputs
from decoct.tasks.inputs.images import Images


class ImageClassification(Images, Classes, Joined):
    """One class for each image: uint8 pixels in, scaled to [0, 1], resized, normalised inside the exported graph.

    `shape` (C, H, W) of the raw images and `mean`, `std` by channel (of pixels in [0, 1]) come from the training data
    where left out. `size`: the model's input is resized to so many pixels a side; `teacher_size`, `teacher_mean`,
    `teacher_std`, `teacher_shape` where the teacher's side differs. `augment` varies training images.
    Accuracy is the main metric unless `metric_name` says otherwise.
    """

    use: ClassVar[str] = "image_classification"
    reads: ClassVar[type[Inputs]] = Images
    answers: ClassVar[type[Answer]] = Classes
