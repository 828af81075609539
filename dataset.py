"""Data sets as tensors: the embedded glyphs, torchvision's by name, or a folder of images.

`load` gives the training, validation and test split, each one uint8 tensor of images (N, C, H, W) and one of labels.
A tensor that would crowd the device's memory stays on the host (`place`), and a folder's images on disk; `batches`
reads both ahead of use. `python dataset.py path/to/folder` only looks at a data set: see loading/look.py.
"""
import running.start  # noqa: F401

import difflib
import hashlib
import io
import math
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loading import arrays, folder
from loading.layout import ARCHIVES, TEST_SHARE
from loading.reading import Reading
from running import devices
from running.cli import UserError
from running.files import alone, atomic
from running.progress import Bar

DEVICE_SHARE = 0.5  # of a device's free memory that one tensor of the data may take
VALIDATION_SHARE = 0.05  # of the training images, where a data set has no validation split
SHIFT = 16          # augmented images are shifted by up to so great a part of either side: 4 pixels of 64
GAP = 3             # slices left out between splits that are cut from one volume
GLYPHS = {"train": 20_000, "test": 2_000}  # images drawn for either split
GLYPHS_VERSION = 1                         # change it with anything that changes the drawing: it names the cache
GLYPH_SIZE = 28                            # pixels, height and width
GLYPH_FONTS = [
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10", "cmss10", "cmtt10",
]

# torchvision's class and the arguments that choose the training and the test split
TORCHVISION = {
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "fashion_mnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "qmnist": ("QMNIST", {"what": "train"}, {"what": "test"}),
    "emnist": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "usps": ("USPS", {"train": True}, {"train": False}),
    "cifar10": ("CIFAR10", {"train": True}, {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}, {"train": False}),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "stl10": ("STL10", {"split": "train"}, {"split": "test"}),
}
NAMES = ("glyphs", *TORCHVISION)  # of data sets that are no folder


class Split(NamedTuple):
    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64

    def to(self, device: torch.device) -> "Split":
        return Split(place(self.images, device), place(self.labels, device))


class Data(NamedTuple):
    train: Split
    validation: Split  # the folder's own, or a twentieth of train: the only one that chooses weights or settings
    test: Split        # reported, never used to choose
    class_names: list[str]
    notes: Sequence[str] = ()  # lines: how a folder was interpreted, where that is not plain
    value_range: str = "auto"  # black and white of a folder's samples wider than 8 bits, if it has any
    test_files: Sequence[str] = ()  # the path of each test image's file within its folder; empty where there are none

    @property
    def class_counts(self) -> list[int]:
        """The training images of each class; none for one that is in another split alone."""
        return torch.bincount(self.train.labels, minlength=len(self.class_names)).tolist() if self.class_names else []


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in [0, 1]."""
    return images.float().div_(255)


def augment(images: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Copies of uint8 images (B, C, H, W), by the words of `how`: "flip" mirrors each left to right with
    probability 1/2; "shift" moves each by a random number of pixels, its edges repeated; "none" changes nothing.
    """
    count, _, *sides = images.shape
    rows, columns = (torch.arange(side).expand(count, -1) for side in sides)  # (B, side): where each pixel comes from
    if "flip" in how:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if "shift" in how:
        most = [max(1, side // SHIFT) for side in sides]
        moves = (torch.randint(-part, part + 1, (count, 1), generator=generator) for part in most)
        rows, columns = ((part + move).clamp(0, part.shape[1] - 1) for part, move in zip((rows, columns), moves))
    numbers, rows, columns = (index.to(images.device) for index in (torch.arange(count), rows, columns))
    return images.permute(0, 2, 3, 1)[numbers[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def place(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device if that has room for it, or else where it is."""
    free = float("inf")
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return tensor.to(device) if tensor.nbytes <= DEVICE_SHARE * free else tensor


def gather(tensor: Tensor, index: Tensor) -> Tensor:
    """tensor[index] along the first dimension, in the calling thread alone.

    On a CPU torch would start a second pool of threads for it, which competes with that of the step beside it.
    """
    if tensor.device.type != "cpu":
        return tensor[index.to(tensor.device)]
    if tensor.dim() == 4:  # with the channels last, as images are stored and networks read them
        return torch.from_numpy(tensor.permute(0, 2, 3, 1).numpy()[index.numpy()]).permute(0, 3, 1, 2)
    return torch.from_numpy(tensor.numpy()[index.numpy()])


def auto_epochs(least: int, steps: int, steps_an_epoch: int) -> int:
    """The passes over the data where EPOCHS is "auto": for so many steps, but at least `least`."""
    return max(least, math.ceil(steps / steps_an_epoch))


def batches(indices: Iterable[Tensor], device: torch.device, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """For every index tensor its rows of each of the tensors, on the device.

    Where a tensor lies on disk, or on the host and not the device, a thread reads its rows while those before them
    are in use.
    """
    def read(index: Tensor) -> list[Tensor]:
        rows = [gather(tensor, index) for tensor in tensors]
        folder.release()
        if device.type == "cuda":  # from pinned memory the copy runs while this process goes on
            rows = [part if part.is_cuda else part.pin_memory() for part in rows]
        return [part.to(device, non_blocking=device.type == "cuda") for part in rows]

    if all(tensor.device.type == device.type for tensor in tensors) and not folder.any_mapped():
        yield from map(read, indices)
        return
    ahead: deque = deque()
    with ThreadPoolExecutor(1) as thread:
        for index in indices:
            ahead.append(thread.submit(read, index))
            if len(ahead) == 2:
                yield ahead.popleft().result()
        for rows in ahead:
            yield rows.result()


def digest(split: Split, enough: int = 1000) -> str:
    """A digest of a split's size, its labels and `enough` of its images, evenly spaced: tells data sets apart."""
    spaced = torch.arange(0, len(split.images), math.ceil(len(split.images) / enough))
    content = hashlib.sha256(repr(tuple(split.images.shape)).encode())
    for part in (split.labels, split.images[spaced]):
        content.update(part.contiguous().numpy())
    return content.hexdigest()


def pixel_variance(images: Tensor, enough: int = 2**24) -> float:
    """Variance of the pixels, scaled to [0, 1], of evenly spaced ones of uint8 images: about `enough` pixels."""
    spaced = torch.arange(0, len(images), math.ceil(images.nbytes / enough))
    return torch.cat([images[part].flatten() for part in spaced.split(1024)]).float().div_(255).var(correction=0).item()


def load(name: str, data_dir: str, limit: int = 0, reading: Reading = Reading(), output_dir: str = "") -> Data:
    """The data set `name`, kept or looked for under data_dir, or the images of the folder of that name.

    limit: use the first N images of either part. reading: how a folder's files become images. output_dir: a directory
    of which nothing is data, as of data_dir and those of other runs.
    UserError if there is no such data set, or if it cannot be had.
    """
    if name == "glyphs":
        (train, test), class_names = glyphs(data_dir), [str(digit) for digit in range(10)]
    elif name in TORCHVISION:
        train, test, class_names = from_torchvision(name, data_dir)
    elif arrays.are_at(name):
        splits, class_names, notes, value_range = arrays.load(name, reading, limit)
        splits = {split: Split(*tensors) for split, tensors in splits.items()}
        data = with_validation(splits["train"], splits["test"], class_names, limit)
        data = data if "validation" not in splits else data._replace(**splits)
        return data._replace(notes=notes, value_range=value_range)
    elif Path(name).is_dir():
        return from_folder(name, data_dir, limit, reading, output_dir)
    else:
        raise UserError(f"DATASET (--dataset): {name!r} {unknown(name)}; there are: "
                        f"{', '.join(NAMES)}, or the path of a folder of images, the new one if it "
                        f"was moved")
    return with_validation(train, test, class_names, limit)


def unknown(name: str) -> str:
    """What may be meant by a name that is no data set and no folder, the middle of a sentence."""
    plain = {re.sub("[^a-z0-9]", "", known): known for known in NAMES}
    path, near = Path(name), difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, 1, 0.8)
    if path.is_file():
        archive = path.suffix.lower() in ARCHIVES
        return "is an archive: unpack it, and name the folder" if archive else "is a file: name its folder"
    if re.match(r"[A-Za-z]:\\|.*\\.*\\", name) and os.sep == "/":
        return "is a path of Windows, which this system writes with / and without a drive"
    if near:
        return f"is no data set: `--dataset {plain[near[0]]}` is meant, perhaps"
    missing = next((part for part in reversed(path.parents) if not part.exists()), None)
    return "is no data set and no folder" + (f", {missing} is not there" if missing else "")


def too_few(train: int, test: int, limit: int) -> str:
    return f"DATASET (--dataset): it has {train} training and {test} test images, where LIMIT (--limit) is {limit}: " \
           f"at least 2 and 1 are needed"


def with_validation(train: Split, test: Split, class_names: list[str], limit: int) -> Data:
    """The first `limit` images of either split, 0: all, a twentieth of those to train on, by chance, for validation."""
    train, test = (Split(*(part[:limit or None] for part in split)) for split in (train, test))
    count = len(train.images)
    if count < 2 or not len(test.images):
        raise UserError(too_few(count, len(test.images), limit))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen, rest = order.split([held := max(1, int(VALIDATION_SHARE * count)), count - held])
    rest = rest.sort().values
    return Data(Split(train.images[rest], train.labels[rest]), Split(train.images[chosen], train.labels[chosen]),
                test, class_names)


def from_folder(root: str, data_dir: str, limit: int, reading: Reading, output_dir: str = "") -> Data:
    """The images of a folder as views of its decoded array on disk: the files are in random order already.

    No volume and no subject lies on two sides, unless all is of one: then the splits are cut along its slices.
    """
    if output_dir and Path(output_dir).resolve() == Path(root).resolve():
        raise UserError(f"OUTPUT_DIR (--output-dir) is the folder of images itself: name another directory, such as "
                        f"{shlex.quote(str(Path(root) / 'output'))}")
    found = folder.load(root, data_dir, reading, output_dir)
    images, labels, end, class_names, names, given, units, notes, value_range = found
    rows = {"validation": slice(0, given), "train": slice(given, end), "test": slice(end, len(images))}
    if limit and end < len(images):
        rows = {name: slice(part.start, min(part.start + limit, part.stop)) for name, part in rows.items()}
    start, stop = rows["train"].start, rows["train"].stop
    missing = {name: share for name, share in (("validation", VALIDATION_SHARE), ("test", TEST_SHARE))
               if rows[name].start == rows[name].stop}
    if missing and stop - start > 1 and units[start] == units[stop - 1]:
        rows |= {name: start + part for name, part in cut(stop - start, missing, limit).items()}
        notes = [*notes, f"all training images are of {units[start]}: {' and '.join(missing)} are blocks of its "
                         f"slices, up to {GAP} slices away from those trained on"]
    elif "validation" in missing and stop - start > 1:
        rows |= hold_out(units, start, stop)
    splits = {name: Split(images[part], labels[part]) for name, part in rows.items()}
    if len(splits["train"].images) < 2 or not all(len(split.images) for split in splits.values()):
        raise UserError(too_few(len(splits["train"].images), len(splits["test"].images), limit))
    test_files = [names[i] for i in torch.arange(len(images))[rows["test"]].tolist()]
    return Data(splits["train"], splits["validation"], splits["test"], class_names, notes, value_range, test_files)


def hold_out(units: list[str], start: int, stop: int) -> dict[str, slice]:
    """Divide rows of several units into validation and train, about a twentieth and the rest, between two units.

    units: of each row the file or subject it is of; the rows of one follow each other.
    """
    held = begin = start + max(1, int(VALIDATION_SHARE * (stop - start)))
    while held < stop and units[held] == units[held - 1]:
        held += 1
    while begin > start and units[begin] == units[begin - 1]:
        begin -= 1
    if 2 * (held - start) > stop - start and begin > start:  # a large unit: leave it to the training
        held = begin
    parts = slice(start, held), slice(held, stop)
    return dict(zip(("validation", "train"), sorted(parts, key=lambda part: part.stop - part.start)))


def cut(count: int, shares: dict[str, float], limit: int = 0) -> dict[str, Tensor]:
    """Divide `count` neighbouring slices: a block for each of the shares by name, evenly spaced, and `train`, the rest
    but for a gap about each block; limit: the first so many of each part.

    Blocks lie inside, as a volume's first and last slices often show nothing.
    """
    gap, train, parts = min(GAP, count // 20), torch.ones(count, dtype=torch.bool), {}
    for number, (name, share) in enumerate(shares.items(), start=1):
        size = max(1, round(share * count))
        first = min(count - size, round(number * count / (len(shares) + 1) - size / 2))
        parts[name] = torch.arange(first, first + size)
        train[max(0, first - gap):first + size + gap] = False
    parts["train"] = train.nonzero()[:, 0]
    return {name: part[:limit or None] for name, part in parts.items()}


# ---------------------------------------------------------------------------------------------------------
# Glyphs


def draw_glyphs(count: int, seed: int | tuple[int, ...]) -> Split:
    """Draw `count` digits, light on black, with random font, size, rotation, shear, shift, stroke and contrast."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=count)
    fonts = rng.integers(len(GLYPH_FONTS), size=count)
    sizes = rng.integers(92, 113, size=count)          # at four times the final size, as is all up to `reduce`
    strokes = rng.integers(1, 6, size=count)
    angles = rng.normal(0, np.radians(6), size=count)
    shears = rng.normal(0, 0.12, size=count)
    shifts = rng.normal(0, 2.5, size=(count, 2))
    inks = rng.uniform(160, 255, size=count)
    try:
        with devices.processes(count) as pool:
            drawn = pool.map(draw_glyph, labels, fonts, sizes, strokes, angles, shears, shifts, inks, chunksize=128)
            images = np.stack(list(Bar(drawn, desc="drawing glyphs", total=count)))
    except BrokenProcessPool:
        raise UserError("a process that drew glyphs was killed, for want of memory perhaps: start again") from None
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def draw_glyph(label: int, font: int, size: int, stroke: int, angle: float, shear: float, shift: np.ndarray,
               ink: float) -> np.ndarray:
    """One glyph (GLYPH_SIZE, GLYPH_SIZE) uint8. size, stroke, shift (x, y): in fourths of a pixel; angle: radians."""
    from PIL import Image, ImageDraw
    canvas, middle = 4 * GLYPH_SIZE, 2 * GLYPH_SIZE
    picture = Image.new("L", (canvas, canvas))
    ImageDraw.Draw(picture).text((middle, middle), str(label), fill=255, font=load_font(int(font), int(size)),
                                 anchor="mm", stroke_width=int(stroke))
    cos, sin = np.cos(angle), np.sin(angle)
    a, b, c, d = cos, cos * shear - sin, sin, sin * shear + cos  # rotation times shear, about the middle
    offset_x = middle - a * (middle + shift[0]) - b * (middle + shift[1])
    offset_y = middle - c * (middle + shift[0]) - d * (middle + shift[1])
    picture = picture.transform(picture.size, Image.Transform.AFFINE, (a, b, offset_x, c, d, offset_y),
                                Image.Resampling.BILINEAR)
    return np.rint(np.asarray(picture.reduce(4), np.float32) * (ink / 255)).astype(np.uint8)


@cache
def load_font(font: int, size: int) -> Any:
    """A font of GLYPH_FONTS, which matplotlib brings, of so many pixels."""
    import matplotlib
    from PIL import ImageFont
    directory = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(directory / f"{GLYPH_FONTS[font]}.ttf"), size)


def glyphs(data_dir: str) -> tuple[Split, Split]:
    """The glyphs' training and test split, from the cache under data_dir, or drawn anew and kept there."""
    path = Path(data_dir) / f"glyphs-{GLYPHS_VERSION}.npz"
    with nullcontext() if path.exists() else alone(path.with_name(path.name + ".lock"), "draws the glyphs"):
        try:
            with np.load(path) as cached:
                return tuple(Split(*(torch.from_numpy(cached[f"{part}_{kind}"]) for kind in Split._fields))
                             for part in GLYPHS)
        except FileNotFoundError:
            pass
        except Exception:  # damaged, in whatever way
            print(f"{path} cannot be read: drawing the glyphs anew", file=sys.stderr)
        splits = {part: draw_glyphs(count, (i, GLYPHS_VERSION)) for i, (part, count) in enumerate(GLYPHS.items())}
        buffer = io.BytesIO()
        np.savez(buffer, **{f"{part}_{kind}": array.numpy() for part, split in splits.items()
                            for kind, array in split._asdict().items()})
        try:
            with atomic(path) as file:
                file.write(buffer.getbuffer())
        except OSError as error:
            print(f"the glyphs are not cached in {path.parent}: {error.strerror}", file=sys.stderr)
        return tuple(splits.values())


# ---------------------------------------------------------------------------------------------------------
# torchvision


def from_torchvision(name: str, data_dir: str) -> tuple[Split, Split, list[str]]:
    """Training and test split and class names; a copy under data_dir is used as it is, or else downloaded."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch fails while it is imported
        raise UserError(f"the data set {name!r} needs a torchvision that fits your torch ({error}); "
                        f"`--dataset glyphs` needs none") from None
    class_name, *arguments = TORCHVISION[name]
    reader = getattr(torchvision.datasets, class_name)
    splits = []
    for argument in arguments:
        try:
            data = reader(data_dir, download=False, **argument)
        except RuntimeError:  # torchvision's word for "not there, or not whole"
            try:
                data = reader(data_dir, download=True, **argument)
            except Exception as error:  # each of its readers fails in its own way
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{name} is not in {data_dir} and cannot be downloaded ({reason}): check the "
                                f"connection, or use `--dataset glyphs`, which needs none") from None
        images, targets = np.asarray(data.data), np.asarray(data.targets if hasattr(data, "targets") else data.labels)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        if name == "emnist":  # stored with rows and columns exchanged
            images = images.swapaxes(2, 3)
        labels = torch.from_numpy(targets).reshape(len(images), -1)[:, 0].long()
        splits.append(Split(torch.from_numpy(images).contiguous(), labels))
    names = getattr(data, "classes", None) or [str(label) for label in range(int(splits[0].labels.max()) + 1)]
    return *splits, list(names)


if __name__ == "__main__":
    from loading import look
    look.start()
