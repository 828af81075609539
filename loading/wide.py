"""Samples of more than 8 bits: their values are counted, and scaled to 8 bits between two of them."""
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from loading.reading import Reading

BIN_BITS = 20  # a bin holds the values whose float32 agrees in the sign, the exponent and the first 11 bits: 0.05 %


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
