"""Decode codes that no prior chose: what the VQ-VAE makes of chance.

Reads `vqvae.pt` from OUTPUT_DIR; writes `random_sample_0.png` ... and the grid `random_samples.png` there.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import devices
import figures
from cli import run as run_script
from modules import VQVAE, grid_size, nearest_codes

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
NUM_SAMPLES = 25          # images to make
SOURCE = "uniform"        # "uniform": every code as likely as any other; "gaussian": Gaussian latents, quantized
SEED = 0                  # of the draws: the same seed gives the same images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def draw_codes(vqvae: VQVAE, shape: tuple[int, int, int], source: str, generator: torch.Generator) -> Tensor:
    """Codes (B, H, W) drawn uniformly, or as the nearest to standard Gaussian latents."""
    if source == "uniform":
        return torch.randint(vqvae.config.num_codes, shape, generator=generator)
    batch, height, width = shape
    z_e = vqvae.quantizer.normalise(torch.randn(batch, vqvae.config.code_dim, height, width, generator=generator))
    return nearest_codes(z_e.flatten(0, 2), vqvae.quantizer.codebook)[0].view(shape)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored)
    height, width = stored["data"]["height"], stored["data"]["width"]
    codes = draw_codes(vqvae, (args.NUM_SAMPLES, *grid_size(height, width, vqvae.config.downsample)), args.SOURCE,
                       torch.Generator().manual_seed(args.SEED))
    images = vqvae.to(device).decode(codes.to(device), height, width)
    output = Path(args.OUTPUT_DIR)
    for number, image in enumerate(images):
        figures.save_image(image, output / f"random_sample_{number}.png")
    figures.save_grid(images, output / "random_samples.png")
    print(f"wrote {args.NUM_SAMPLES} decoded random grids to {output / 'random_sample_0.png'} ... and the grid "
          f"{output / 'random_samples.png'}")


if __name__ == "__main__":
    run_script(main, globals())
