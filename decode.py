"""One image file to uint8 pixels: pictures by Pillow, plain JPEG files by simplejpeg, NIfTI by nibabel."""
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cli import UserError

try:
    import simplejpeg
except ImportError:  # Pillow does its work, only slower
    simplejpeg = None

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # what Pillow may open, whatever the file is called
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", *NIFTI)
MAX_VOXELS = 2**29    # of a NIfTI file; Pillow has its own limit for pictures
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

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are brought to; None: their own."""
        if self.image_size == "auto":
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)


def read(path: str, reading: Reading) -> Tensor:
    """The images (N, C, H, W) uint8 of one file: N is 1, but for NIfTI volumes. UserError if it cannot be decoded."""
    with strictly():
        outcome = try_decode(path, reading)
    if isinstance(outcome, str):
        raise UserError(f"{path} cannot be decoded: {outcome}")
    return torch.from_numpy(outcome.copy()).permute(0, 3, 1, 2)


def decode(path: str, reading: Reading) -> np.ndarray:
    """The images (N, H, W, C) uint8 of one file, C 1 or 3, of the size that reading asks for or their own.

    Whatever the decoders raise passes through.
    """
    if path.lower().endswith(NIFTI):
        pictures = nifti_slices(path, reading)
    else:
        with open(path, "rb") as file:
            content = file.read(WHOLE)  # at once: Pillow reads a small file in some forty pieces
            whole = len(content) < WHOLE
            pixels = plain_jpeg(content, reading) if whole else None
            if pixels is not None:
                return pixels[None]
            pictures = [picture(io.BytesIO(content) if whole else file, reading)]
    if reading.channels != "auto":
        pictures = [image.convert("L" if reading.channels == 1 else "RGB") for image in pictures]
    if reading.size:  # the largest part of that shape about the middle
        pictures = [ImageOps.fit(image, reading.size[::-1], Image.Resampling.LANCZOS) for image in pictures]
    pixels = np.frombuffer(b"".join(image.tobytes() for image in pictures), np.uint8)
    return pixels.reshape(len(pictures), pictures[0].height, pictures[0].width, -1)


def plain_jpeg(content: bytes, reading: Reading) -> np.ndarray | None:
    """The pixels (H, W, C) of a small JPEG file: those that Pillow decodes (with the same libjpeg), in a quarter of its
    time. None for what is not plain and whole, or is to be converted: of that Pillow judges.
    """
    if simplejpeg is None or reading.size or not content.startswith(b"\xff\xd8\xff") or b"Exif" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        channels = {"Gray": 1, "YCbCr": 3}.get(colours)
        if reading.channels not in ("auto", channels) or not channels or height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB")
    except Exception:  # at the least damage, and at samplings that it does not know
        return None


def picture(file: BinaryIO, reading: Reading) -> Image.Image:
    """The (first) picture of a file that Pillow reads, upright and without transparency: mode "L" or "RGB".

    What is transparent becomes white; 16 bits of grey become 8 by their high byte, rounded (Pillow cuts those of
    colours off); 32-bit and floating-point TIFF, which have no fixed range, are scaled as NIfTI is.
    """
    image = Image.open(file, formats=FORMATS)
    mode, kind = image.mode, image.format
    if reading.size:  # a JPEG is decoded at the eighth, fourth or half of its size where that is enough
        image.draft(None, (2 * max(reading.size),) * 2)
    image.load()
    white_is_zero = kind == "TIFF" and image.tag_v2.get(262) == 0
    if kind == "TIFF" or image.info.keys() & {"exif", "Raw profile type exif"}:
        image = ImageOps.exif_transpose(image)
    if mode.startswith("I;16") or (mode == "I" and kind == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        grey[wide == image.info.get("transparency", -1)] = 255
        return Image.fromarray(255 - grey if white_is_zero else grey)  # Pillow turns 8 bits alone around
    if mode in ("I", "F"):
        return Image.fromarray(to_bytes(np.asarray(image), *ends(np.asarray(image), reading)))
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


def nifti_slices(path: str, reading: Reading) -> list[Image.Image]:
    """The slices of a NIfTI file along nifti_axis, one if it is 2D; rows and columns are the array's own axes."""
    import nibabel
    volume = nibabel.load(path)
    shape = volume.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"its shape {volume.shape} is neither a slice nor a volume")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ValueError(f"its {'x'.join(map(str, shape))} voxels are more than {MAX_VOXELS}")
    values = np.asarray(volume.dataobj)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its voxels are of type {values.dtype}, not real numbers")
    values = values.reshape(shape)
    slices = [values] if len(shape) == 2 else np.moveaxis(values, reading.nifti_axis, 0)
    whole = ends(values, reading) if reading.nifti_scale == "volume" else None
    return [Image.fromarray(to_bytes(part, *(whole or ends(part, reading)))) for part in slices]


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
    scaled = (values.astype(np.float64) - bottom) / ((top - bottom) or np.inf)
    return np.rint(np.nan_to_num(scaled, nan=0).clip(0, 1) * 255).astype(np.uint8, order="C")


@contextmanager
def strictly() -> Iterator[None]:
    """In here Pillow refuses decompression bombs, and no decoder warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def try_decode(path: str, reading: Reading) -> np.ndarray | str:
    """The images of a file, or the reason why there are none."""
    try:
        return decode(path, reading)
    except ImportError as error:
        raise UserError(f"{path} is a NIfTI file, which needs nibabel ({error}): `pip install nibabel`") from None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if os.path.getsize(path) else "empty"
    except Exception as error:  # whatever the bytes of a foreign file make the decoders raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return " ".join(reason.split())[:200]
