"""One image file to uint8 pixels: pictures by Pillow, plain JPEG files by simplejpeg, NIfTI by nibabel.

Samples of 8 bits are kept. Wider ones (integers of 16 or 32 bits, floating point) have no range of their own, so they
are scaled to 8 bits between two values of the whole folder, and brightness stays comparable between files. `decode`
with a `FirstPass` decodes what needs nothing else, tells of the rest its size, and counts its values.
"""
import argparse
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from running.cli import UserError

try:
    import simplejpeg
except ImportError:  # Pillow does its work, only slower
    simplejpeg = None

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # what Pillow may open, whatever the file is called
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", *NIFTI)
MAX_VOXELS = 2**29    # of a NIfTI file or a TIFF stack; Pillow has its own limit for a picture
WHOLE = 2**16         # a picture of fewer bytes is read into memory at once


class Reading(NamedTuple):
    """How a folder's files become images: the constants of the same names in train_vqvae.py."""

    image_size: str = "auto"
    channels: int | str = "auto"
    nifti_axis: int = 2
    nifti_scale: str = "volume"
    nifti_low: float = 0.5
    nifti_high: float = 99.5
    max_unreadable: float = 0.01
    classes: str = "auto"
    value_range: str = "auto"

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Reading":
        """What a script's constants say."""
        return cls(*(getattr(args, name.upper()) for name in cls._fields))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are brought to; None: their own, or the common one of a folder."""
        if self.image_size == "auto":
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The values that become black and white in wide samples; None: not known."""
        if self.value_range == "auto":
            return None
        low, high = map(float, self.value_range.split())
        return low, high


class Fit(NamedTuple):
    """The size of an image, and how it is brought there about the middle."""

    height: int
    width: int
    how: str = "resize"   # "resize": scaled until it covers that size, then cropped; "crop": cropped or padded


class Shape(NamedTuple):
    """What a file holds."""

    count: int            # images: pages of a TIFF, slices of a volume
    height: int
    width: int
    channels: int         # 0: not known yet
    marks: tuple = ()     # what a notice should tell: "alpha", "animated", "pages", a type such as "uint16"
    decoded: bool = True  # False: more must be known before, the common size or the range of all values


@dataclass
class FirstPass:
    """What the first pass over a folder knows and gathers."""

    size: tuple[int, int] | None               # images of this size are decoded at once; None: of any size
    counts: "np.ndarray | None" = None         # how often values of each bin occur (see `bins`), once there are some

    def count(self, values: np.ndarray) -> None:
        if self.counts is None:
            self.counts = np.zeros(2**BIN_BITS, np.int64)
        np.add.at(self.counts, bins(values[np.isfinite(values)]), 1)


class Wide(NamedTuple):
    """A picture whose samples are not plain 8 bits."""

    values: np.ndarray                         # (H, W) or (H, W, 3), of any real type
    ends: tuple[float, float] | None = None    # what becomes black and white, if it is of this picture alone
    inverted: bool = False                     # the lowest value is white
    opacity: np.ndarray | None = None          # (H, W) in [0, 1]

    def pixels(self, ends: tuple[float, float] | None) -> np.ndarray:
        """The picture (H, W) or (H, W, 3) uint8 over white; ends: used where it has none of its own."""
        grey = to_bytes(self.values, *(self.ends or ends))
        grey = 255 - grey if self.inverted else grey
        if self.opacity is not None:
            alpha = self.opacity.reshape(*self.opacity.shape, *[1] * (grey.ndim - 2))
            grey = np.rint(grey * alpha + 255 * (1 - alpha)).astype(np.uint8)
        return grey


def read(path: str, reading: Reading) -> Tensor:
    """The images (N, C, H, W) uint8 of one file: N is 1, but for volumes and TIFF stacks. UserError if it cannot be
    decoded. Without reading.value_range wide samples are scaled by the values of the file itself.
    """
    with strictly():
        outcome = try_decode(path, reading)
    if isinstance(outcome, str):
        raise UserError(f"{path} cannot be decoded: {outcome}")
    return torch.from_numpy(outcome[0].copy()).permute(0, 3, 1, 2)


def peek(path: str, reading: Reading) -> tuple[int, int] | None:
    """Height and width of a file's images, without decoding them; None if they cannot be told."""
    try:
        with strictly(), open(path, "rb") as file:
            volume = path.lower().endswith(NIFTI)
            return (nifti_slices(path, reading) if volume else pictures(file))[0][1:3]
    except Exception:  # decoding it will tell the reason
        return None


def decode(path: str, reading: Reading, fit: Fit | None = None,
           first: FirstPass | None = None) -> tuple[np.ndarray | None, Shape]:
    """The images (N, H, W, C) uint8 of one file, C 1 or 3, and what the file held.

    fit: the size to bring them to, where reading asks for none; None: their own. first: decode only what needs nothing
    of other files, or else return None. Whatever the decoders raise passes through.
    """
    fit = Fit(*reading.size) if reading.size else fit
    if path.lower().endswith(NIFTI):
        return _finish(*nifti_slices(path, reading), reading, fit, first)
    with open(path, "rb") as file:
        content = file.read(WHOLE)  # at once: Pillow reads a small file in some forty pieces
        whole = len(content) < WHOLE
        pixels = plain_jpeg(content, reading, fit, first.size if first else None) if whole else None
        if pixels is not None:
            pixels = _grey_if_grey(pixels[None], reading)
            return _crop(pixels, fit) if fit else pixels, Shape(*pixels.shape)
        return _finish(*pictures(io.BytesIO(content) if whole else file, fit), reading, fit, first)


def _finish(shape: Shape, unscaled: bool, pages: Iterator["Image.Image | Wide"], reading: Reading, fit: Fit | None,
            first: FirstPass | None) -> tuple[np.ndarray | None, Shape]:
    """Decode the pages of a file; in the first pass put off those that need the folder's size or range."""
    whole = reading.ends
    if unscaled and not whole:
        pages = list(pages)
        wide = [page.values for page in pages if isinstance(page, Wide)]
        if first:
            for values in wide:
                first.count(values)
            return None, shape._replace(decoded=False)
        whole = ends(np.concatenate([values.ravel() for values in wide]), reading)  # one file by itself
    if first and first.size and shape[1:3] != first.size:
        return None, shape._replace(decoded=False)
    images = [fitted(page.pixels(whole) if isinstance(page, Wide) else page, reading, fit) for page in pages]
    pixels = images[0][None] if len(images) == 1 else np.stack(images)
    pixels = _grey_if_grey(pixels.reshape(*pixels.shape[:3], -1), reading)
    return _crop(pixels, fit) if fit else pixels, shape._replace(channels=pixels.shape[3])


def fitted(image: Image.Image | np.ndarray, reading: Reading, fit: Fit | None) -> np.ndarray:
    """The picture (H, W) or (H, W, 3) uint8 with the channels that reading asks for; resized, where it is to be, to the
    largest part about the middle.
    """
    mode = {1: "L", 3: "RGB"}.get(reading.channels)
    resize = fit and fit.how == "resize"
    if isinstance(image, np.ndarray) and (resize or mode):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        image = image.convert(mode) if mode and image.mode != mode else image
        image = ImageOps.fit(image, (fit.width, fit.height), Image.Resampling.LANCZOS) if resize else image
    return np.asarray(image)


def _crop(pixels: np.ndarray, fit: Fit) -> np.ndarray:
    """Images (N, H, W, C) cropped about the middle where they are too large, padded with their darkest value where
    they are too small. No pixel is rescaled.
    """
    height, width = pixels.shape[1:3]
    top, left = (max(0, side - wanted) // 2 for side, wanted in ((height, fit.height), (width, fit.width)))
    pixels = pixels[:, top:top + fit.height, left:left + fit.width]
    above, before = (wanted - side for side, wanted in zip(pixels.shape[1:3], (fit.height, fit.width)))
    if above or before:
        edges = (0, 0), (above // 2, above - above // 2), (before // 2, before - before // 2), (0, 0)
        pixels = np.pad(pixels, edges, constant_values=pixels.min())
    return np.ascontiguousarray(pixels)


def _grey_if_grey(pixels: np.ndarray, reading: Reading) -> np.ndarray:
    """One channel of images whose three are the same, where reading leaves the channels open: grey files are often
    saved as RGB.
    """
    if reading.channels != "auto" or pixels.shape[3] == 1:
        return pixels
    red, green, blue = pixels[0, pixels.shape[1] // 2, pixels.shape[2] // 2].tolist()
    if red == green == blue and all((pixels[..., 0] == pixels[..., i]).all() for i in (1, 2)):
        return np.ascontiguousarray(pixels[..., :1])
    return pixels


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 to grey (...), with Pillow's weights and rounding (ITU-R 601-2)."""
    return (pixels @ np.array([19595, 38470, 7471], np.uint32) + 32768 >> 16).astype(np.uint8)


def plain_jpeg(content: bytes, reading: Reading, fit: Fit | None = None,
               size: tuple[int, int] | None = None) -> np.ndarray | None:
    """The pixels (H, W, C) of a small JPEG file: those of Pillow (with the same libjpeg), in a quarter of its time.

    None, and Pillow decides, for what is not plain and whole, is to be converted or resized, or is not of `size`.
    """
    if simplejpeg is None or reading.size or (fit and fit.how == "resize") or not content.startswith(b"\xff\xd8\xff") \
            or b"Exif" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        channels = {"Gray": 1, "YCbCr": 3}.get(colours)
        if size and (height, width) != size:
            return None
        if reading.channels not in ("auto", channels) or not channels or height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB")
    except Exception:  # at the least damage, and at samplings that it does not know
        return None


def pictures(file: BinaryIO, fit: Fit | None = None) -> tuple[Shape, bool, Iterator]:
    """What a file that Pillow reads holds, whether its values still need a range, and its pages.

    Every page of a TIFF counts, but for previews and pages of another size than the first; of animations the first
    frame does. A page is a picture in mode "L" or "RGB", upright and over white, or Wide.
    """
    image = Image.open(file, formats=FORMATS)
    size, marks, pages, kind = _upright_size(image), [], [0], _wide_kind(image, file)
    if image.format == "TIFF":
        whole = image.size
        for number in range(1, image.n_frames):
            image.seek(number)
            if image.tag_v2.get(254, 0) & 1:  # a preview of another page
                continue
            if image.size == whole:
                pages.append(number)
                kind = kind or _wide_kind(image, file)
            else:
                marks = ["pages"]
        if len(pages) > 1 and len(pages) * math.prod(whole) > MAX_VOXELS:
            raise ValueError(f"its {len(pages)} pages have more than {MAX_VOXELS} pixels")
        image.seek(0)
    elif getattr(image, "is_animated", False):
        marks = ["animated"]
    marks += [kind] * bool(kind) + ["alpha"] * image.has_transparency_data
    return Shape(len(pages), *size, 0, tuple(marks)), bool(kind), (_page(image, file, number, fit) for number in pages)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of a picture that is not loaded, as its EXIF orientation turns it."""
    width, height = image.size
    if image.format != "TIFF" and image.info.keys() & {"exif", "Raw profile type exif"} \
            and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
        return width, height
    return height, width


def _page(image: Image.Image, file: BinaryIO, number: int, fit: Fit | None) -> "Image.Image | Wide":
    """A page of an open file: a picture in mode "L" or "RGB" of 8 bits, or Wide. What is transparent becomes white."""
    if image.format == "TIFF":
        image.seek(number)
    if _wide_kind(image, file):
        return _wide_page(image, file, number)
    mode = image.mode
    if fit and fit.how == "resize":  # a JPEG is decoded at the eighth, fourth or half of its size where that is enough
        image.draft(None, (2 * max(fit.height, fit.width),) * 2)
    image.load()
    image = _upright(image)
    grey = mode in ("1", "L", "LA", "La")  # how the file has it
    if mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3))
        grey = bool((palette == palette[:, :1]).all())
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF" or image.info.keys() & {"exif", "Raw profile type exif"}:
        return ImageOps.exif_transpose(image)
    return image


# ---------------------------------------------------------------------------------------------------------
# Samples that are not plain 8 bits


def _wide_kind(image: Image.Image, file: BinaryIO) -> str:
    """The type of samples that are not plain 8 bits, such as "uint16"; "" of those that are."""
    bits, sample_format = 8, 1
    if image.format == "TIFF":
        bits, sample_format = max(image.tag_v2.get(258, (1,))), image.tag_v2.get(339, (1,))[0]
    elif image.format == "PNG":
        file.seek(24)
        bits = file.read(1)[0]
    if bits <= 8 and sample_format == 1:
        return ""
    return {1: "uint", 2: "int", 3: "float"}.get(sample_format, "?") + str(bits)


def _wide_page(image: Image.Image, file: BinaryIO, number: int) -> Wide:
    """A page of 16 or 32 bits. ValueError for the kinds that Pillow would cut to 8 bits."""
    kind, rawmode = _wide_kind(image, file), _rawmode(image)
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    clear, opacity = image.info.get("transparency"), None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(_upright(image))
        values = values.view(kind) if kind == "uint32" else values
    elif rawmode == "LA;16B":  # four bytes: those of the grey value, and those of its opacity
        grey_high, grey_low, high, low = np.moveaxis(_reread(image, file, number, "RGBA"), 2, 0).astype(np.uint16)
        values, opacity = grey_high << 8 | grey_low, (high << 8 | low) / 65535
    elif colours := re.fullmatch("(RGBA?;16)([BLN])", rawmode):
        big = colours[2] == "B" or colours[2] == "N" and sys.byteorder == "big"
        high = _reread(image, file, number, rawmode).astype(np.uint16)  # Pillow keeps the high byte of a sample ...
        low = _reread(image, file, number, colours[1] + "BL"[big])  # ... or the low one, if told the other byte order
        values = high << 8 | low
        if values.shape[2] == 4:
            values, opacity = values[:, :, :3], values[:, :, 3] / 65535
    else:
        raise ValueError(f"its {kind} samples of mode {rawmode} cannot be read in full")
    if clear is not None and opacity is None:
        shown = values != np.asarray(clear)
        opacity = (shown.any(2) if shown.ndim == 3 else shown).astype(float)
    return Wide(values, None, inverted, opacity)


def _rawmode(image: Image.Image) -> str:
    """How the samples lie in the file, in Pillow's words."""
    args = image.tile[0][3] if image.tile else ""
    return args if isinstance(args, str) else str(args[0])


def _reread(image: Image.Image, file: BinaryIO, number: int, rawmode: str) -> np.ndarray:
    """The page (H, W, C) uint8, its bytes taken as of another raw mode."""
    file.seek(0)
    again = Image.open(file, formats=FORMATS)
    again.seek(number)
    args = rawmode if isinstance(again.tile[0][3], str) else (rawmode, *again.tile[0][3][1:])
    again.tile = [type(tile)(*tile[:3], args) if hasattr(tile, "_fields") else (*tile[:3], args) for tile in again.tile]
    return np.asarray(_upright(again))


BIN_BITS = 20  # a bin holds the values whose float32 agrees in the sign, the exponent and the first 11 bits: 0.05 %


def bins(values: np.ndarray) -> np.ndarray:
    """The bin of each finite value, in the order of the values; integers up to 4096 have one of their own."""
    limit = np.finfo(np.float32).max
    values = np.clip(values, -limit, limit) if values.dtype.kind == "f" else values
    bits = values.astype(np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31)) >> np.uint32(32 - BIN_BITS)


def bin_values(numbers: np.ndarray) -> np.ndarray:
    """The value that stands for each bin: the one nearest to 0."""
    bits = numbers.astype(np.uint32) << np.uint32(32 - BIN_BITS)
    rest = np.uint32(2**(32 - BIN_BITS) - 1)
    return np.where(bits >> 31, bits ^ np.uint32(2**31), ~(bits | rest)).astype(np.uint32).view(np.float32)


def binned_ends(counts: np.ndarray, reading: Reading) -> tuple[float, float]:
    """`ends` of the values that counts (2**BIN_BITS,) counted, which need not be held together."""
    numbers, = counts.nonzero()
    if not len(numbers):
        return 0.0, 0.0
    values, sums = bin_values(numbers), counts[numbers].cumsum()
    bottom, top = (values[np.searchsorted(sums, percent / 100 * (sums[-1] - 1), side="right")]
                   for percent in (reading.nifti_low, reading.nifti_high))
    return (float(bottom), float(top)) if bottom < top else (float(values[0]), float(values[-1]))


# ---------------------------------------------------------------------------------------------------------
# NIfTI


def nifti_slices(path: str, reading: Reading) -> tuple[Shape, bool, Iterator[Wide]]:
    """What a NIfTI file holds, whether its values still need a range, and its slices.

    A volume is turned to the closest canonical orientation (axis 0 from left to right, 1 from back to front, 2 from
    bottom to top) and cut along nifti_axis. Rows and columns then run against the two other axes, the radiological
    convention: head or front of the patient above, the patient's left on the right. A 2D file is shown as it lies.
    """
    import nibabel
    volume = nibabel.load(path)
    full = volume.shape
    while len(full) > 2 and full[-1] == 1:
        full = full[:-1]
    if len(full) not in (2, 3) or 0 in full:
        raise ValueError(f"its shape {volume.shape} is neither a slice nor a volume")
    if np.prod(full, dtype=float) > MAX_VOXELS:
        raise ValueError(f"its {'x'.join(map(str, full))} voxels are more than {MAX_VOXELS}")
    kind = volume.get_data_dtype()
    if kind.kind not in "iuf":
        raise ValueError(f"its voxels are of type {kind}, not real numbers")
    orientation = None
    if len(full) == 3:
        orientation = nibabel.io_orientation(volume.affine)
        if not np.isfinite(orientation).all():
            raise ValueError("its affine gives its axes no orientation")
        sides = [full[axis] for axis in np.argsort(orientation[:, 0])]
        count = sides.pop(reading.nifti_axis)
        shape = Shape(count, *sides[::-1], 1)
    else:
        shape = Shape(1, *full, 1)
    unscaled = reading.nifti_scale == "folder" or reading.ends is not None  # VALUE_RANGE is of all volumes

    def slices() -> Iterator[Wide]:
        values = np.asarray(volume.dataobj).reshape(full)
        if orientation is None:
            parts = [values]
        else:
            values = nibabel.apply_orientation(values, orientation)
            parts = np.moveaxis(values, reading.nifti_axis, 0)[:, ::-1, ::-1].transpose(0, 2, 1)
        whole = ends(values, reading) if reading.nifti_scale == "volume" and not unscaled else None
        for part in parts:
            yield Wide(part, ends(part, reading) if reading.nifti_scale == "slice" and not unscaled else whole)

    return shape._replace(marks=(str(kind),) if unscaled else ()), unscaled, slices()


def ends(values: np.ndarray, reading: Reading) -> tuple[float, float]:
    """The intensities that become black and white: percentiles of the finite ones, or their extremes where the
    percentiles are the same, as in a mask of one small spot.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    bottom, top = np.percentile(finite, (reading.nifti_low, reading.nifti_high))
    return (float(bottom), float(top)) if bottom < top else (float(finite.min()), float(finite.max()))


def to_bytes(values: np.ndarray, bottom: float, top: float) -> np.ndarray:
    """Intensities as uint8: bottom and below 0, top and above 255, NaN 0, and where bottom is top too."""
    scaled = values.astype(np.float64, order="C")
    scaled -= bottom
    scaled /= (top - bottom) or np.inf
    if values.dtype.kind == "f":
        scaled[np.isnan(scaled)] = 0
    np.clip(scaled, 0, 1, out=scaled)
    scaled *= 255
    return np.rint(scaled, out=scaled).astype(np.uint8)


@contextmanager
def strictly() -> Iterator[None]:
    """In here Pillow refuses decompression bombs, and no decoder warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def try_decode(path: str, reading: Reading, fit: Fit | None = None,
               first: FirstPass | None = None) -> tuple[np.ndarray | None, Shape] | str:
    """What `decode` returns, or the reason why the file cannot be decoded."""
    try:
        return decode(path, reading, fit, first)
    except ImportError as error:
        raise UserError(f"{path} is a NIfTI file, which needs nibabel ({error}): `pip install nibabel`") from None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if os.path.getsize(path) else "empty"
    except Exception as error:  # whatever the bytes of a foreign file make the decoders raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return " ".join(reason.split())[:200]
