"""How a data set is interpreted, in a few lines and a picture, so that a wrong one is seen before it is trained on."""
from pathlib import Path

import torch
from torch import Tensor

from dataset import Data
from loading.layout import PICTURE, SIGNATURE, some
from running import devices, figures

NAMED = 10          # classes that are named; of more, the first and the last few
LAST = 3
ACROSS = 12         # images in a row of the picture ...
PER_CLASS = {12: 12, 40: 6, 200: 3, 2400: 1}  # ... and of each class, where there are up to so many classes
UNLABELLED = 72     # images in the picture where there are no classes
PIXELS = 2**24      # of evenly spaced images, whose values are told


def lines(name: str, data: Data) -> list[str]:
    """What to say of a data set: its images, splits and classes, and what is not plain about it."""
    count, (channels, height, width) = sum(len(split.images) for split in data[:3]), data.train.images.shape[1:]
    enough = max(1, PIXELS // data.train.images[0].numel())
    seen = data.train.images[spaced(len(data.train.images), enough)]
    told = [f"{name}: {count} images, {height} pixels high and {width} wide, {'grey' if channels == 1 else 'RGB'}, "
            f"values {seen.min()} to {seen.max()}, {seen.float().mean():.0f} on average",
            f"splits: {len(data.train.images)} train, {len(data.validation.images)} validation, "
            f"{len(data.test.images)} test"]
    counts = [f"{number} {name} {count}" for number, (name, count) in enumerate(zip(data.class_names,
                                                                                    data.class_counts))]
    if counts:
        shown = counts if len(counts) <= NAMED + LAST else [*counts[:NAMED], "...", *counts[-LAST:]]
        told.append(f"classes: {len(counts)} (number, name, training images): {', '.join(shown)}")
    else:
        told.append("classes: none")
    if missing := [name for name, count in zip(data.class_names, data.class_counts) if not count]:
        told.append(f"without a training image, so that no prior learns them: {some(missing)}")
    return [" ".join(line.split()) for line in [*told, *data.notes]]


def examples(data: Data) -> dict[str, tuple[Tensor, Tensor]]:
    """For each line of text the images of a split and the indices of some of them: of every class, of the training
    split if it is there.
    """
    if not data.class_names:
        return {"": (data.train.images, spaced(len(data.train.images), UNLABELLED))}
    found, most, each = {}, max(PER_CLASS), per_class(len(data.class_names))
    for number, name in enumerate(data.class_names[:most]):
        for title, split in (("", data.train), ("validation only", data.validation), ("test only", data.test)):
            rows = (split.labels == number).nonzero()[:, 0]
            if len(rows):
                text = f"{number} {name} ({title or len(rows)})"
                found[text] = split.images, rows[spaced(len(rows), each)]
                break
    return found


def per_class(classes: int) -> int:
    """How many images of each class a picture of so many classes shows."""
    return next((each for most, each in PER_CLASS.items() if classes <= most), 1)


def spaced(count: int, most: int) -> Tensor:
    """Indices of at most so many of `count` rows, evenly spaced: neighbours may be slices of one volume."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def show(name: str, data: Data, output_dir: str) -> None:
    """Print how a data set is interpreted, and save its picture in output_dir. Other processes wait for it."""
    if devices.is_main():
        path = Path(output_dir) / PICTURE
        figures.save_labelled(examples(data), path, ACROSS, SIGNATURE)
        print("\n".join([*lines(name, data), f"wrote {path}: check that these are the images that you mean"]),
              flush=True)
    devices.wait()
