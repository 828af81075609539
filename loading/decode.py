"""One image file to uint8 pixels: pictures by Pillow, plain JPEG files by simplejpeg, volumes by volumes.py.

Samples of 8 bits are kept. Wider ones (integers of 16 or 32 bits, floating point) have no range of their own, so they
are scaled to 8 bits between two values of the whole folder, and brightness stays comparable between files. `decode`
with a `FirstPass` decodes what needs nothing else, tells of the rest its size, and counts its values.
"""
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from loading.reading import Fit, Reading, Shape
from loading.volumes import DICOM, MAX_VOXELS, NIFTI, frames, is_dicom, nifti_slices
from loading.wide import FirstPass, Wide, ends
from running.cli import UserError

try:
    import simplejpeg
except ImportError:  # Pillow does its work, only slower
    simplejpeg = None

# what Pillow may open, whatever the file is called
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "ICO",
           *(["AVIF"] if find_spec("PIL._avif") else []))
BY_NAME = {".tga": "TGA", ".heic": "HEIF", ".heif": "HEIF"}  # what is not known by its first bytes, or needs a package
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2",
            ".ico", ".avif", *BY_NAME, *NIFTI, *DICOM)
WIDE_MODES = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}  # of formats but PNG and TIFF
WHOLE = 2**16         # a picture of fewer bytes is read into memory at once


def read(path: str, reading: Reading) -> Tensor:
    """The images (N, C, H, W) uint8 of one file: N is 1, but for volumes and TIFF stacks. UserError if it cannot be
    decoded. Without reading.value_range wide samples are scaled by the values of the file itself.
    """
    with strictly():
        outcome = try_decode(path, reading)
    if isinstance(outcome, str):
        raise UserError(f"{path} cannot be decoded: {outcome}")
    return torch.from_numpy(outcome[0].copy()).permute(0, 3, 1, 2)


def peek(path: str, reading: Reading) -> Shape | None:
    """What a file holds, without decoding it; None if that cannot be told."""
    try:
        with strictly(), open(path, "rb") as file:
            return (_volume(path, reading) or pictures(file, formats=_formats(path)))[0]
    except Exception:  # decoding it will tell the reason
        return None


def decode(path: str, reading: Reading, fit: Fit | None = None,
           first: FirstPass | None = None) -> tuple[np.ndarray | None, Shape]:
    """The images (N, H, W, C) uint8 of one file, C 1 or 3, and what the file held.

    fit: the size to bring them to, where reading asks for none; None: their own. first: decode only what needs nothing
    of other files, or else return None. Whatever the decoders raise passes through.
    """
    fit = Fit(*reading.size) if reading.size else fit
    if volume := _volume(path, reading):
        return _finish(*volume, reading, fit, first)
    with open(path, "rb") as file:
        content = file.read(WHOLE)  # at once: Pillow reads a small file in some forty pieces
        whole = len(content) < WHOLE
        pixels = plain_jpeg(content, reading, fit, first.size if first else None) if whole else None
        if pixels is not None:
            pixels = _grey_if_grey(pixels[None], reading)
            return _crop(pixels, fit) if fit else pixels, Shape(*pixels.shape)
        opened = pictures(io.BytesIO(content) if whole else file, fit, _formats(path))
        return _finish(*opened, reading, fit, first)


def _volume(path: str, reading: Reading) -> tuple[Shape, bool, Iterator] | None:
    """What a NIfTI or DICOM file holds, as `pictures` tells it; None for other files."""
    if path.lower().endswith(NIFTI):
        return nifti_slices(path, reading)
    return frames(path) if is_dicom(path) else None


def _formats(path: str) -> tuple[str, ...]:
    """The formats that a file may have."""
    named = BY_NAME.get(os.path.splitext(path)[1].lower())
    if named == "HEIF":
        import pillow_heif
        pillow_heif.register_heif_opener()
    return (*FORMATS, named) if named else FORMATS


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


def pictures(file: BinaryIO, fit: Fit | None = None,
             formats: tuple[str, ...] = FORMATS) -> tuple[Shape, bool, Iterator]:
    """What a file that Pillow reads holds, whether its values still need a range, and its pages.

    Every page of a TIFF counts, but for previews and pages of another size than the first; of animations the first
    frame does. A page is a picture in mode "L" or "RGB", upright and over white, or Wide.
    """
    image = Image.open(file, formats=formats)
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
    elif image.mode in WIDE_MODES:
        return WIDE_MODES[image.mode]
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
        package = str(error.name).replace("_", "-")
        raise UserError(f"{path} needs a package that is not there: `pip install {package}`") from None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if os.path.getsize(path) else "empty"
    except Exception as error:  # whatever the bytes of a foreign file make the decoders raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return " ".join(reason.split())[:200]
