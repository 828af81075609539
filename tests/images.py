"""Image files that tests make."""
import io

import nibabel
import numpy as np
import torch
from PIL import Image

from loading import decode
from loading.reading import Reading


def noise(height, width, channels=1, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def write_many(root, count, height=6, width=8, channels=1, suffix=".png", start=0):
    for number in range(start, start + count):
        write(root / f"{number:04d}{suffix}", noise(height, width, channels, seed=number))
    return root


def one(path, **reading):
    """The only image (H, W, C) of a file, as numbers that may be subtracted."""
    images = decode.read(str(path), Reading(**reading))
    assert len(images) == 1 and images.dtype == torch.uint8
    return images[0].permute(1, 2, 0).numpy().astype(int)


def jpeg(height, width, channels, **options):
    slope = np.add.outer(3 * np.arange(height), 2 * np.arange(width))[:, :, None]
    pixels = ((slope + noise(height, width, channels).reshape(height, width, channels) // 4) % 256).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file, "JPEG", **options)
    return file.getvalue()


def nifti(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), **options), path)
    return path


def write_classes(root, counts):
    """Folders of so many images each, {"train/cat": 20, ...}; no image comes twice."""
    for number, (folder, count) in enumerate(counts.items()):
        write_many(root / folder, count, 8, 8, start=100 * number)
    return root
