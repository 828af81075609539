"""How files are to become images, and what a file holds."""
import argparse
from typing import NamedTuple


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
