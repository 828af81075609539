"""Put images through the VQ-VAE and measure what is lost.

Reads `vqvae.pt` from OUTPUT_DIR; writes `reconstructed_image_0.png` ..., each original beside its
reconstruction, and the grid `reconstructions.png`, originals over reconstructions.
"""
import argparse
from pathlib import Path

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

import checkpoint
import dataset
import devices
import figures
from cli import UserError
from cli import run as run_script

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # where the images come from; None: the data set that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # choose among the first N images of the test split; 0: all
NUM_IMAGES = 10           # images to reconstruct, drawn from the test split
SEED = 0                  # of the choice of images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def similarity(original: Tensor, copy: Tensor) -> float:
    """SSIM of two images (C, H, W) in [0, 1] as Wang et al. (2004) define it: Gaussian window of sigma 1.5 (11 pixels),
    data range 1. NaN for images smaller than the window.
    """
    if min(original.shape[1:]) < 11:
        return float("nan")
    return structural_similarity(original.cpu().numpy(), copy.cpu().numpy(), channel_axis=0, data_range=1.0,
                                 gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device)
    args = checkpoint.fill(args, stored)
    images = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT).test.images
    checkpoint.check_images(stored, images)
    if args.NUM_IMAGES > len(images):
        raise UserError(f"NUM_IMAGES (--num-images) of {args.NUM_IMAGES} is more than the {len(images)} test images")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.SEED))[:args.NUM_IMAGES]
    originals = dataset.to_float(images[chosen])
    copies = torch.cat([vqvae(part.to(device)).images.clamp(0, 1).cpu() for part in originals.split(64)])
    output = Path(args.OUTPUT_DIR)
    rows = []
    for number, (original, copy) in enumerate(zip(originals, copies)):
        figures.save_grid(torch.stack([original, copy]), output / f"reconstructed_image_{number}.png", columns=2)
        mse = (original - copy).square().mean()
        rows.append(torch.tensor([mse, -10 * mse.clamp_min(1e-12).log10(), similarity(original, copy)]))
        print(f"image {number}: MSE {rows[-1][0]:.5f}, PSNR {rows[-1][1]:.2f} dB, SSIM {rows[-1][2]:.4f}")
    mean = torch.stack(rows).mean(0)
    print(f"mean of {len(rows)}: MSE {mean[0]:.5f}, PSNR {mean[1]:.2f} dB, SSIM {mean[2]:.4f}")
    columns = min(10, len(originals))
    pairs = [torch.cat(pair) for pair in zip(originals.split(columns), copies.split(columns))]
    figures.save_grid(torch.cat(pairs), output / "reconstructions.png", columns)
    print(f"wrote {output / 'reconstructed_image_0.png'} ... and the grid {output / 'reconstructions.png'}, originals "
          f"over reconstructions")


if __name__ == "__main__":
    run_script(main, globals())
