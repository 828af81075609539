"""Decode random codes, drawn without a prior.

Reads `vqvae.pt` from OUTPUT_DIR. Writes `random_sample_0.png` ... and the grid `random_samples.png` there.
Sample i depends on SEED and i alone, not on how many are drawn.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import devices
import figures
import files
from cli import run as run_script
from modules import VQVAE, grid_size, nearest_codes

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
NUM_SAMPLES = 25          # images to make
SOURCE = "uniform"        # "uniform": every code as likely as any other; "gaussian": Gaussian latents, quantized
SEED = 0                  # of the draws: the same seed gives the same images
BATCH_SIZE = 64           # grids decoded at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def draw_codes(vqvae: VQVAE, shape: tuple[int, int, int], source: str, generator: torch.Generator) -> Tensor:
    """Codes (B, H, W) drawn uniformly, or as the nearest to standard Gaussian latents."""
    if source == "uniform":
        return torch.randint(vqvae.config.num_codes, shape, generator=generator)
    batch, height, width = shape
    # one by one: torch.randn gives a batch other numbers than its parts, unless these are multiples of 16 numbers
    z_e = torch.stack([torch.randn(vqvae.config.code_dim, height, width, generator=generator) for _ in range(batch)])
    z_e = vqvae.quantizer.normalise(z_e)
    return nearest_codes(z_e.flatten(0, 2), vqvae.quantizer.vectors().cpu())[0].view(shape)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device)
    height, width = stored["data"]["height"], stored["data"]["width"]
    grid = grid_size(height, width, vqvae.config.downsample)
    generator = torch.Generator().manual_seed(args.SEED)
    output = Path(args.OUTPUT_DIR)
    files.remove(output, "random_sample_*.png")  # of an earlier call
    shown = []
    for part in torch.arange(args.NUM_SAMPLES).split(args.BATCH_SIZE):
        codes = draw_codes(vqvae, (len(part), *grid), args.SOURCE, generator)
        images = vqvae.decode(codes.to(device), height, width)
        for number, image in zip(part.tolist(), images):
            figures.save_image(image, output / f"random_sample_{number}.png")
        shown += images[:figures.room(height, width) - len(shown)]
    figures.save_grid(torch.stack(shown), output / "random_samples.png")
    first = f" of the first {len(shown)}" if len(shown) < args.NUM_SAMPLES else ""
    print(f"wrote {args.NUM_SAMPLES} decoded random grids to {output / 'random_sample_0.png'} ... and the grid "
          f"{output / 'random_samples.png'}{first}")


if __name__ == "__main__":
    run_script(main, globals())
