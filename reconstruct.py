"""Reconstruct images with the VQ-VAE and measure the error.

Reads `vqvae.pt` from OUTPUT_DIR or PRETRAINED. Writes `reconstructed_image_0.png` ..., each original beside its
reconstruction, the grid `reconstructions.png`, originals over reconstructions, and `latents.png`, one
channel of z_e and of z_q, and the codes.

MSE, PSNR and SSIM are scikit-image's, of images in [0, 1] (data range 1).
"""
import running.start  # noqa: F401

import argparse
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

import dataset
from judging import testset
from judging.metrics import SSIM_WINDOW, similarity
from priors import runs
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
DATASET = None            # a data set, a folder or one image file; None: the data set that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # choose among the first N images; 0: all; None: as in the training
IMAGE_SIZE = None         # of a folder's images; None: the training's, of a file too; "auto": their own
CROP = ""                 # of an image file: left, top and size in pixels of the square to take, such as "40 10 120"
INVERT = False            # of an image file: light becomes dark, where the training's images are light on dark
NUM_IMAGES = 10           # images to reconstruct, drawn from the test split, or from all images of an unknown folder
LATENT_CHANNEL = 0        # the channel of z_e and z_q to show in latents.png
SEED = 0                  # of the choice of images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    if args.LATENT_CHANNEL >= vqvae.config.code_dim:
        raise UserError(f"LATENT_CHANNEL (--latent-channel): there is no channel {args.LATENT_CHANNEL}, z_e has "
                        f"{vqvae.config.code_dim}")
    images, _, of_split = testset.find(args, stored, stored["data"]["channels"])
    if of_split:
        testset.check_enough(images, args.NUM_IMAGES)
    chosen = testset.choose(images, args.NUM_IMAGES, args.SEED)
    output = Path(args.OUTPUT_DIR)
    files.remove(output, "reconstructed_image_*.png")  # of an earlier call
    errors, shown = [], []
    for number, image in enumerate(images[chosen]):
        original = dataset.to_float(image)
        copy = vqvae(original[None].to(device)).images[0].clamp(0, 1).cpu()
        figures.save_grid(torch.stack([original, copy]), output / f"reconstructed_image_{number}.png", columns=2)
        pair = original.numpy(), copy.numpy()
        errors.append((mean_squared_error(*pair), peak_signal_noise_ratio(*pair, data_range=1.0), similarity(*pair)))
        print("image {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(number, *errors[-1]))
        if 2 * number < figures.room(*images.shape[2:]):
            shown.append((original, copy))
    print("mean of {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(len(errors), *np.mean(errors, 0)))
    if min(images.shape[2:]) < SSIM_WINDOW:
        print(f"SSIM: the window of {SSIM_WINDOW} pixels is larger than these images, so a smaller one is used")
    originals, copies = (torch.stack(part) for part in zip(*shown))
    figures.save_pairs(originals, copies, output / "reconstructions.png", columns=10)
    originals, copies = originals[:4], copies[:4]  # rows of latents.png
    figures.save_latents(originals, copies, vqvae(originals.to(device)).quantized, args.LATENT_CHANNEL,
                         vqvae.config.num_codes, output / "latents.png")
    first = f" of the first {len(shown)}" if len(shown) < len(chosen) else ""
    print(f"wrote {output / 'reconstructed_image_0.png'} ..., the grid {output / 'reconstructions.png'}{first}, "
          f"originals over reconstructions, and {output / 'latents.png'}")


if __name__ == "__main__":
    run_script(main, globals())
