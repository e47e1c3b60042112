"""Downstream utility: classifiers trained on one set of images, tested on another ("train on synthetic, test on real").

The figures are exact and protect nobody: whoever tests on private images takes a *look*, which the caller must put on
the ledger. Nothing is chosen by its score on the test images, because picking the best epoch or the best of several
networks inflates a score and, on private images, costs privacy. Hence all classifiers are reported, with their mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.decode import ImageSpec
from sfumato.data.release import Samples
from sfumato.errors import UserError
from sfumato.measure import recipes
from sfumato.measure.images import Labelled, read_folder
from sfumato.measure.recipes import CLASSIFIERS, ClassifierName, Progress

__all__ = ["CLASSIFIERS", "Labelled", "Utility", "UtilityTable", "evaluate", "read_folder", "utility_table"]

Images = Path | Samples | Labelled
Report = Callable[[str, int, int], None]
"""Told (what is trained, steps done, steps in all)."""


@dataclass(frozen=True)
class Utility:
    """How well a classifier did.

    Attributes:
        accuracy: share of test images classified correctly.
        per_class: the same by class name; classes without a test image are absent.
        train_images, test_images: images that were used. Exact counts, hence private if the images are.
        classifier: "logistic", "mlp", "cnn" or "wrn".
        seconds: wall time of training and testing.
    """

    accuracy: float
    per_class: dict[str, float]
    train_images: int
    test_images: int
    classifier: str
    seconds: float


@dataclass(frozen=True)
class UtilityTable:
    """How well several classifiers did, by what they were trained on.

    The mean is the figure to quote. The maximum is there because the published tables of DP image synthesis
    (DPImageBench and what follows it) give one: theirs is over a ResNet, a WRN and a ResNeXt, each far larger than
    ours, so compare like with like. A maximum of scores on test images is too high.

    Attributes:
        synthetic: trained on the images under test, one a classifier.
        real: the same classifiers trained on real images; empty if none were given.
    """

    synthetic: tuple[Utility, ...]
    real: tuple[Utility, ...] = ()

    @property
    def mean(self) -> float:
        """Mean accuracy over the classifiers trained on the images under test."""
        return float(np.mean([one.accuracy for one in self.synthetic]))

    @property
    def maximum(self) -> float:
        """The greatest of these accuracies."""
        return max(one.accuracy for one in self.synthetic)

    @property
    def real_mean(self) -> float | None:
        """Mean accuracy of the classifiers trained on real images, or None."""
        return float(np.mean([one.accuracy for one in self.real])) if self.real else None

    @property
    def real_maximum(self) -> float | None:
        """The greatest of these, or None."""
        return max((one.accuracy for one in self.real), default=None)

    def to_json(self) -> dict[str, Any]:
        """Every figure, mean and maximum."""
        found: dict[str, Any] = {
            "synthetic": [asdict(one) for one in self.synthetic],
            "mean": self.mean,
            "maximum": self.maximum,
        }
        if self.real:
            found |= {
                "real": [asdict(one) for one in self.real],
                "real_mean": self.real_mean,
                "real_maximum": self.real_maximum,
            }
        return found

    def __str__(self) -> str:
        """A table with a line a classifier and the counts of images below."""
        sides = [side for side in (self.synthetic, self.real) if side]
        lines = ["            " + "".join(f"{head:>12}" for head, _ in zip(("synthetic", "real"), sides, strict=False))]
        for row in zip(*sides, strict=True):
            lines.append(f"{row[0].classifier:<12}" + "".join(f"{one.accuracy:>12.2%}" for one in row))
        for name, of in (("mean", np.mean), ("maximum", np.max)):
            lines.append(f"{name:<12}" + "".join(f"{of([one.accuracy for one in side]):>12.2%}" for side in sides))
        lines.append("trained on  " + "".join(f"{side[0].train_images:>12}" for side in sides) + " images")
        lines.append("tested on   " + "".join(f"{side[0].test_images:>12}" for side in sides) + " images")
        return "\n".join(lines)


def evaluate(
    train: Images,
    test: Path | Labelled,
    classifier: ClassifierName,
    *,
    spec: ImageSpec | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Utility:
    """Trains a classifier on `train` and tests it on `test`.

    Args:
        train: a release, any folder of labelled images, samples, or labelled images in memory.
        test: labelled images with the same classes.
        classifier: "logistic" is multinomial logistic regression on pixels, "mlp" a network that does not know which
            pixels are neighbours, "cnn" a plain convolutional network, "wrn" a wide residual network. Logistic
            regression hardly tells good images from blurred ones; never quote it alone.
        spec: the shape all images are brought to; default: that of the training images.
        device: of the networks: "cpu", "cuda" or "auto".
        progress: told (steps done, steps in all) of training.

    Raises:
        UserError: unknown classifier, no images with labels, images of two shapes, or classes that differ.
    """
    if classifier not in CLASSIFIERS:
        raise UserError(f"There is no classifier {classifier!r}; give one of {', '.join(CLASSIFIERS)}.")
    known = _labelled(train, spec)
    new = _labelled(test, spec or known.spec)
    if set(known.classes) != set(new.classes):
        raise UserError(
            f"The training images are of the classes {', '.join(known.classes)}; the test images must be of just these."
        )
    if known.pixels.shape[1:] != new.pixels.shape[1:]:
        raise UserError(
            f"The training images have the shape {known.pixels.shape[1:]} and the test images {new.pixels.shape[1:]}; "
            "give images of one shape."
        )
    began = time.monotonic()
    predict = recipes.train(classifier, known, device, progress or (lambda *_: None))
    guesses = predict(new.pixels)
    truth = np.array([known.classes.index(name) for name in new.classes])[new.labels]
    right = guesses == truth
    return Utility(
        accuracy=float(right.mean()),
        per_class={
            name: float(right[truth == label].mean()) for label, name in enumerate(known.classes) if label in truth
        },
        train_images=len(known.labels),
        test_images=len(new.labels),
        classifier=classifier,
        seconds=time.monotonic() - began,
    )


def utility_table(
    train: Images,
    test: Path | Labelled,
    real: Path | Labelled | None = None,
    *,
    classifiers: Sequence[ClassifierName] = CLASSIFIERS,
    device: str = "cpu",
    progress: Report | None = None,
) -> UtilityTable:
    """Trains each classifier on `train`, and on `real` if given, and tests it on `test`.

    Args:
        train: the images under test, as for `evaluate`.
        test: real images with the same classes, on which nothing was trained.
        real: real images to train the same classifiers on, for comparison.
        classifiers: which, in the order of the table.
        device: of the networks: "cpu", "cuda" or "auto".
        progress: told what is trained and how far.

    Raises:
        UserError: as `evaluate`; or no classifier is named.
    """
    unknown = [name for name in classifiers if name not in CLASSIFIERS]
    if unknown or not classifiers:
        raise UserError(
            f"The classifiers given are {', '.join(classifiers) or 'none'}; give some of {', '.join(CLASSIFIERS)}."
        )
    known = _labelled(train)
    new = _labelled(test, known.spec)

    def row(images: Labelled, called: str) -> tuple[Utility, ...]:
        return tuple(
            evaluate(
                images,
                new,
                name,
                device=device,
                progress=progress and (lambda done, of, name=name: progress(f"{name} on {called} images", done, of)),
            )
            for name in classifiers
        )

    truth = None if real is None else _labelled(real, known.spec)
    return UtilityTable(row(known, "synthetic"), row(truth, "real") if truth else ())


def _labelled(images: Images, spec: ImageSpec | None = None) -> Labelled:
    if isinstance(images, Labelled):
        return images
    if isinstance(images, Samples):
        if images.labels is None or images.classes is None:
            raise UserError("The training images have no labels, so no classifier can learn from them.")
        return Labelled(images.pixels, images.labels, images.classes)
    return read_folder(images, spec)
