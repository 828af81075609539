"""Decode random codes, drawn without a prior.

Reads `vqvae.pt` from OUTPUT_DIR or PRETRAINED. Writes `random_sample_0.png` ... and the grid `random_samples.png`.
Sample i depends on SEED and i alone, not on how many are drawn.
"""
import running.start  # noqa: F401

import argparse
from pathlib import Path

import torch
from torch import Tensor

from modules import VQVAE, nearest_codes
from priors import runs
from running import devices, figures, files
from running.cli import run as run_script

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
NUM_SAMPLES = 25          # images to make
SOURCE = "uniform"        # "uniform": all codes equally likely; "gaussian": Gaussian latents, quantized
SEED = 0                  # of the draws: the same seed gives the same images
BATCH_SIZE = 64           # grids decoded at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def draw_codes(vqvae: VQVAE, count: int, grid: tuple[int, int], source: str, generator: torch.Generator) -> Tensor:
    """Codes (count, height, width) drawn uniformly, or as the nearest to standard Gaussian latents."""
    if source == "uniform":
        return torch.randint(vqvae.config.num_codes, (count, *grid), generator=generator)
    # one by one: torch.randn gives a batch other numbers than its parts, unless these are multiples of 16 numbers
    latents = [torch.randn(vqvae.config.code_dim, *grid, generator=generator) for _ in range(count)]
    z_e = vqvae.quantizer.normalise(torch.stack(latents))
    return nearest_codes(z_e.flatten(0, 2), vqvae.quantizer.codebook.cpu())[0].view(z_e.shape[:3])


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    height, width = stored["data"]["height"], stored["data"]["width"]
    grid = vqvae.grid(height, width)
    generator = torch.Generator().manual_seed(args.SEED)
    output = Path(args.OUTPUT_DIR)
    files.remove(output, "random_sample_*.png")  # of an earlier call
    shown = []
    for part in torch.arange(args.NUM_SAMPLES).split(args.BATCH_SIZE):
        codes = draw_codes(vqvae, len(part), grid, args.SOURCE, generator)
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
