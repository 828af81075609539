"""Sharper reconstructions: a discriminator of patches, and a perceptual loss. Nothing here runs unless it is asked for.

The squared error is least for the mean of all images that a grid of codes may stand for, and that mean is blurred. The
discriminator learns to tell the patches of a reconstruction from those of an image, and the decoder to make patches
that it cannot tell. A perceptual loss compares features of both instead of pixels: those of training/imagenet.py.

Papers, cited by number in the code:
[1] Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021, arXiv:2012.09841 (VQGAN)
[2] Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017, arXiv:1611.07004 (patches)
[3] Lim and Ye, Geometric GAN, 2017, arXiv:1705.02894 (the hinge loss)
"""
import argparse
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn import functional as F

from modules import VQVAE, group_norm
from running import devices
from training import imagenet
from training.optimizers import AdamW

WIDTHS = (32, 64, 128)   # channels of the discriminator's strided layers
LEARNING_RATE = 1e-3     # of the discriminator at its highest; it rises and falls as that of the VQ-VAE
BETAS = (0.5, 0.9)       # of its Adam, as in the code of [1]
AHEAD = 0.1              # share of the training in which the discriminator learns alone, before both losses begin
DELTA = 1e-6             # delta in [1], eq. 7
MOST = 1e4               # most of the adaptive weight, as in the code of [1]

# ---------------------------------------------------------------------------------------------------------
# The discriminator


class Discriminator(nn.Module):
    """Judges patches [2]: images (B, C, H, W) in [0, 1] to logits (B, 1, h, w), above 0 for patches that look real. A
    logit sees 38x38 pixels.

    Its norms are over the channels of one image, not over the batch, so that several processes compute what one would.
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        depth = min(height, width).bit_length() - 1  # each layer halves the image
        layers = []
        for narrow in WIDTHS[:depth]:
            norm = group_norm(narrow) if layers else nn.Identity()
            layers.append(nn.Sequential(nn.Conv2d(channels, narrow, 4, stride=2, padding=1), norm,
                                        nn.LeakyReLU(0.2, inplace=True)))
            channels = narrow
        self.layers, self.head = nn.Sequential(*layers), nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(2 * images - 1)).float()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises ([3], as in the code of [1]): logits of images above 1, of copies below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


# ---------------------------------------------------------------------------------------------------------
# In the training


class Sharpness:
    """What ADVERSARIAL and PERCEPTUAL add to the loss of a step of train_decoder.py.

    Either weight is relative: at the decoder's last layer, the gradient of the loss is that many times as long as the
    gradient of the reconstruction error ([1], eq. 7), whatever the scale of the loss.

    model: the VQ-VAE, on its device. height, width: of its images. UserError if PERCEPTUAL needs a package.
    """

    def __init__(self, args: argparse.Namespace, model: VQVAE, height: int, width: int):
        asked = {"adversarial": args.ADVERSARIAL, "perceptual": args.PERCEPTUAL}
        self.weights = {name: weight for name, weight in asked.items() if weight > 0}
        device = next(model.parameters()).device
        layer = [layer for layer in model.decoder if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))][-1]
        self.last = layer.weight
        if args.COMPILE != "no" and (device.type == "cuda" or args.COMPILE == "yes"):
            # compiled as one, a gradient at the last layer would take a pass through the whole network
            layer.forward = torch.compiler.disable(layer.forward)
        self.network = self.discriminator = None
        if "perceptual" in self.weights:
            self.network = imagenet.load(imagenet.TEACHES, "PERCEPTUAL (--perceptual)", device)
        if "adversarial" in self.weights:
            torch.manual_seed(args.SEED)
            self.discriminator = Discriminator(model.config.channels, height, width)
            self.discriminator.to(device, memory_format=torch.channels_last)
            self.optimizer = AdamW(self.discriminator.parameters(), LEARNING_RATE, BETAS)
        self.losses = [*self.weights, *(["discriminator"] if self.discriminator else [])]  # their names

    @property
    def kept(self) -> dict[str, Any]:
        """What `training.Run` keeps of it: the discriminator with its optimiser, and whose features are compared."""
        return {"companions": {"discriminator": (self.discriminator, self.optimizer)} if self.discriminator else {},
                "perceptual": f"efficientnet-lite{imagenet.TEACHES}" if self.network else ""}

    @property
    def panels(self) -> dict[str, list[str]]:
        """The curves of its terms, by title."""
        return {"losses of sharpness": [f"train_{name}_loss" for name in self.losses],
                "adaptive weights (lambda)": [f"train_{name}_weight" for name in self.weights]}

    def __call__(self, error: Tensor, images: Tensor, copies: Tensor, progress: float,
                 share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss of a step, and terms for the history: the losses and adaptive weights, 0 before
        they are computed.

        error: the reconstruction error, a scalar. images, copies: (B, C, H, W), the copies with their graph. progress:
        the share of the training that this step completes. share: of the batch that is this process's.

        The value of what is returned means nothing, its gradient does: for the discriminator's weights that of its
        loss, for the copies that of all other losses.
        """
        zero = error.new_zeros(())
        added, losses, scales = zero, {}, zero.expand(len(self.weights))
        # the graphs of the losses end at the copies: from there on, one backward pass serves them all
        copies = copies.float()
        seen = copies.detach().requires_grad_()
        if self.discriminator:
            real, fake = self.discriminator(images), self.discriminator(seen)
            losses = {"discriminator": hinge_loss(real, fake), "adversarial": -fake.mean()}
            added = losses["discriminator"]
        if progress > AHEAD:
            if self.network:
                losses["perceptual"] = imagenet.perceptual_loss(self.network, images, seen)
            gradients = [autograd.grad(losses[name], seen, retain_graph=True)[0] for name in self.weights]
            scales = self._adaptive_weights(error, copies, gradients, share)
            pull = sum(weight * scale * gradient
                       for weight, scale, gradient in zip(self.weights.values(), scales, gradients))
            added = added + (copies * pull).sum()
        terms = {f"{name}_loss": losses.get(name, zero).detach() for name in self.losses}
        return added, terms | {f"{name}_weight": scale for name, scale in zip(self.weights, scales)}

    def _adaptive_weights(self, error: Tensor, copies: Tensor, gradients: list[Tensor], share: float) -> Tensor:
        """lambda of [1], eq. 7, of each loss whose gradient for the copies is given: (number of losses,)."""
        at_last = [autograd.grad(error, self.last, retain_graph=True)[0]]
        at_last += [autograd.grad(copies, self.last, gradient, retain_graph=True)[0] for gradient in gradients]
        norms = devices.all_sum(torch.stack(at_last) * share).flatten(1).norm(dim=1)
        return (norms[0] / (norms[1:] + DELTA)).clamp_max(MOST)
