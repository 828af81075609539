"""A made-up study of 2D NIfTI slices: smooth shapes like those of a hip, a little texture and noise."""
from pathlib import Path

import nibabel
import numpy as np


def slice_of(rng: np.random.Generator, height: int, width: int, noise: float = 0.01) -> np.ndarray:
    """One slice (height, width) float32, tissue of 0.3 to 1 on air of 0; noise: sigma of the Rician noise."""
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]

    def ellipse(cy, cx, ry, rx, angle=0.0, edge=0.03):
        cy, cx, ry, rx = (value + rng.normal(0, 0.04) * min(ry, rx) for value in (cy, cx, ry, rx))
        angle += rng.normal(0, 0.08)
        u, v = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle), (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
        return 1 / (1 + np.exp((np.hypot(u / ry, v / rx) - 1) / edge))

    image = 0.75 * ellipse(0, 0, 0.92, 0.85)                    # fat under the skin
    image += -0.35 * ellipse(0, 0, 0.82, 0.7)                   # muscle
    image += 0.35 * ellipse(-0.45, 0.1, 0.22, 0.35)             # bladder
    image += 0.5 * ellipse(0.05, -0.25, 0.16, 0.28)             # head of the femur ...
    image += 0.4 * ellipse(0.45, -0.3, 0.4, 0.13, angle=0.15)   # ... and its shaft
    image += -0.2 * ellipse(0.3, 0.35, 0.3, 0.16, angle=-0.3)   # a darker muscle
    waves = sum(np.sin(rng.uniform(2, 9) * y + rng.uniform(2, 9) * x + rng.uniform(0, 6)) for _ in range(4))
    image = np.clip(image, 0, None) * (1 + 0.03 * waves)
    return np.hypot(image + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape)).astype(np.float32)


def write_study(root: Path, count: int, odd: int, height: int = 256, width: int = 128, odd_width: int = 144) -> None:
    """Write `count` slices of height x width as .nii.gz, and `odd` that are odd_width wide, of MRI-like intensities."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count + odd):
        rng = np.random.default_rng(number)
        values = slice_of(rng, height, width if number < count else odd_width) * rng.uniform(300, 1200)
        name = f"case_{number // 10:03d}_slice_{number % 10}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)), root / name)
