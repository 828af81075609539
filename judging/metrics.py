"""Measures of images and of features of images: pure functions, and torchmetrics' Inception.

Papers, cited by number in the code:
[1] Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
    arXiv:1706.08500 (the Frechet distance between Gaussians fitted to features)
[2] Kynkaanniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, arXiv:1904.06991
[3] Salimans et al., Improved Techniques for Training GANs, 2016, arXiv:1606.03498 (the Inception score)
[4] Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004,
    doi:10.1109/TIP.2003.819861 (SSIM)
[5] Binkowski et al., Demystifying MMD GANs, 2018, arXiv:1801.01401 (the kernel distance, KID)
"""
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from running.cli import UserError
from running.progress import Bar

# A set of images: a function from indices (B,) to images (B, C, H, W) in [0, 1], so that no set is held whole.
Images = Callable[[Tensor], Tensor]

NEIGHBOURS = 3        # k in [2]
SUBSETS = 4           # parts from which the standard error of a kernel distance is taken
SSIM_WINDOW = 11      # pixels a side of the Gaussian window in [4]
SSIM_SIGMA = 1.5      # and its standard deviation
CHUNK = 2**25         # entries of a matrix held at a time


def similarity(original: np.ndarray, copy: np.ndarray) -> float:
    """SSIM of two images (C, H, W) in [0, 1], as [4] defines it, where the window does not reach over the edges.

    The window of an image of fewer pixels a side is the largest odd one that fits.
    """
    from skimage.metrics import structural_similarity  # slow to import, and only some scripts measure SSIM
    window = min(SSIM_WINDOW, *(side - (side + 1) % 2 for side in original.shape[1:]))
    return structural_similarity(original, copy, channel_axis=0, data_range=1.0, gaussian_weights=True,
                                 sigma=SSIM_SIGMA, use_sample_covariance=False, win_size=window)


def ranks(values: Tensor, reference: Tensor) -> Tensor:
    """The share (N,), float64, of reference (M,) that is below each of values (N,); what is equal counts half."""
    ordered, values = reference.double().sort().values, values.double()
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to).double() / (2 * len(reference))


def auroc(values: Tensor, reference: Tensor) -> float:
    """Area under the ROC curve of telling values (N,) from reference (M,): Mann-Whitney U / NM, ties count half."""
    return ranks(values, reference).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features a (N, F) and b (M, F) ([1], eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for the covariances A and B.
    """
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # A B has the eigenvalues of A^(1/2) B A^(1/2), which is symmetric
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(0.0, distance.item())


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The kernel distance (KID) of features a (N, F) and b (M, F), times 1,000: the unbiased estimate of the squared
    maximum mean discrepancy under the kernel (x y / F + 1)^3 ([5], section 3), and its standard error, from SUBSETS
    parts of either. It is about 0, and may be below, where both come from one distribution.
    """
    def estimate(a: Tensor, b: Tensor) -> float:
        within = sum(_kernel_sum(part, part, unlike=True) / (len(part) * (len(part) - 1)) for part in (a, b))
        return 1000 * (within - 2 * _kernel_sum(a, b) / (len(a) * len(b)))
    subsets = min(SUBSETS, len(a) // 2, len(b) // 2)
    parts = [estimate(*pair) for pair in zip(a.tensor_split(subsets), b.tensor_split(subsets))]
    return estimate(a, b), float(np.std(parts, ddof=1)) / len(parts)**0.5


def _kernel_sum(a: Tensor, b: Tensor, unlike: bool = False) -> float:
    """The sum of the kernel over all pairs of a (N, F) and b (M, F); unlike: b is a, no point is paired with itself."""
    def kernel(products: Tensor) -> Tensor:
        return (products.double() / a.shape[1] + 1).pow(3)
    whole = sum(kernel(part @ b.T).sum() for part in a.split(max(1, CHUNK // len(b))))
    return (whole - kernel(a.square().sum(1)).sum() * unlike).item()


def precision_recall(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Precision and recall of features fake (M, F) against real (N, F) ([2], eq. 1 and 2).

    Precision is the share of fake points on the real manifold, recall the share of real points on the fake manifold.
    A manifold is the union of balls around its points, each with the distance to the k-th nearest neighbour as radius.
    """
    real_radii, fake_radii = _radii(real), _radii(fake)
    on_real, on_fake = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, radii in zip(*(rows.split(max(1, CHUNK // len(real))) for rows in (fake, fake_radii))):
        distances = torch.cdist(part, real)
        on_real.append((distances <= real_radii).any(1))
        on_fake |= (distances <= radii[:, None]).any(0)
    return torch.cat(on_real).float().mean().item(), on_fake.float().mean().item()


def _radii(points: Tensor) -> Tensor:
    """Distance (N,) of every point (N, F) to its k-th nearest neighbour, not counting itself."""
    parts = points.split(max(1, CHUNK // len(points)))
    return torch.cat([torch.cdist(part, points).topk(NEIGHBOURS + 1, largest=False).values[:, -1] for part in parts])


class Inception:
    """FID [1] and Inception score [3] as torchmetrics computes them, in the features of an Inception network trained
    on ImageNet, whose weights torchmetrics downloads. UserError if torchmetrics or the weights cannot be loaded.
    """

    def __init__(self, device: torch.device):
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.inception import InceptionScore
            self.fid, self.score = FrechetInceptionDistance(reset_real_features=False), InceptionScore()
        except ImportError:
            raise UserError("INCEPTION (--inception) needs torchmetrics and torch-fidelity: "
                            "`pip install torchmetrics[image]`") from None
        except (OSError, RuntimeError) as error:
            raise UserError(f"INCEPTION (--inception): the Inception network or its weights cannot be loaded "
                            f"({' '.join(str(error).split())[:200]})") from None
        self.device = device if device.type == "cuda" else torch.device("cpu")  # MPS lacks the float64 it computes in
        self.fid.to(self.device)
        self.score.to(self.device)

    def add_real(self, images: Images, indices: Iterable[Tensor]) -> None:
        """Add real images. They stay for every call of `measure`."""
        for index in indices:
            self.fid.update(self._pixels(images(index)), real=True)

    def measure(self, images: Images, indices: Iterable[Tensor]) -> dict[str, float]:
        """FID against the real images added so far, and the Inception score."""
        for index in Bar(indices, desc="inception"):
            pixels = self._pixels(images(index))
            self.fid.update(pixels, real=False)
            self.score.update(pixels)
        result = {"fid": self.fid.compute().item(), "inception_score": self.score.compute()[0].item()}
        self.fid.reset()
        self.score.reset()
        return result

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.clamp(0, 1).mul(255).round().byte().to(self.device)
        return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
