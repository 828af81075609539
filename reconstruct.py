"""Reconstruct images with the VQ-VAE and measure the error.

Reads `vqvae.pt` from OUTPUT_DIR. Writes `reconstructed_image_0.png` ..., each original beside its reconstruction,
the grid `reconstructions.png`, originals over reconstructions, and `latents.png`, what the quantizer takes and gives.

MSE, PSNR and SSIM are scikit-image's, of images in [0, 1] (data range 1).
"""
import argparse
import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torch import Tensor

import checkpoint
import dataset
import decode
import devices
import figures
import files
import folder
import testset
from cli import UserError
from cli import run as run_script
from decode import Reading
from metrics import SSIM_WINDOW, similarity

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # a data set, a folder or one image file; None: the data set that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # choose among the first N images; 0: all
IMAGE_SIZE = None         # of a folder's or a file's images, as in the training; "auto": their own
NUM_IMAGES = 10           # images to reconstruct, drawn from the test split, or from all images of an unknown folder
LATENT_CHANNEL = 0        # the channel of z_e and z_q to show in latents.png
SEED = 0                  # of the choice of images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def find_images(args: argparse.Namespace, stored: dict) -> Tensor:
    """The uint8 images (N, C, H, W) of DATASET to choose from: a test split, or all images of a file or of a folder
    that the VQ-VAE was not trained on, in its channels but of any size. UserError if they do not fit or are too few.
    """
    reading = Reading(**stored["data"]["reading"])._replace(image_size=args.IMAGE_SIZE)
    path = Path(args.DATASET)
    value_range = stored["data"].get("value_range", "auto")  # of the training images, so that brightness is comparable
    if path.is_file():
        return decode.read(args.DATASET, reading._replace(channels=stored["data"]["channels"], value_range=value_range))
    learnt = Path(stored["data"]["dataset"])
    if path.is_dir() and args.DATASET not in ("glyphs", *dataset.TORCHVISION) and path.resolve() != learnt.resolve():
        # the channels as they were found then: for the folder of the training that changes no pixel
        reading = reading._replace(channels=stored["data"]["channels"])
        if not holds_training_images(args, stored):
            reading = reading._replace(value_range=value_range)
            try:
                images = folder.load(args.DATASET, args.DATA_DIR, reading).images
            except UserError:  # it need not have classes and splits; if there is more, this says it again
                images = folder.load(args.DATASET, args.DATA_DIR, reading._replace(classes="none")).images
            images = images[:args.LIMIT or None]
            print(f"DATASET (--dataset): {args.DATASET} has no test split of this run, its training images are not "
                  f"those of {learnt}: drawing from all {len(images)}; any that the VQ-VAE was trained on look better "
                  f"than they should", file=sys.stderr)
            return images
        print(f"{args.DATASET} holds the training images of this run: drawing from its test split")
    images = testset.load(args, stored, reading).test.images
    testset.check_enough(images, args.NUM_IMAGES)
    return images


def holds_training_images(args: argparse.Namespace, stored: dict) -> bool:
    """Whether a folder holds the images of the training under another path: it was moved, or is a copy."""
    reading = Reading(**stored["data"]["reading"])._replace(channels=stored["data"]["channels"])
    try:
        with redirect_stderr(io.StringIO()):  # the images are loaded again for the reconstruction, which says it all
            data = dataset.load(args.DATASET, args.DATA_DIR, stored["data"]["limit"], reading)
    except UserError:  # not even a data set by the rules of the training
        return False
    return dataset.digest(data.train) == stored.get("images")


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device)
    args = checkpoint.fill(args, stored)
    if args.LATENT_CHANNEL >= vqvae.config.code_dim:
        raise UserError(f"LATENT_CHANNEL (--latent-channel): there is no channel {args.LATENT_CHANNEL}, z_e has "
                        f"{vqvae.config.code_dim}")
    images = find_images(args, stored)
    chosen = testset.choose(images, args.NUM_IMAGES, args.SEED)
    output = Path(args.OUTPUT_DIR)
    files.remove(output, "reconstructed_image_*.png")  # of an earlier call
    errors, shown = [], []
    for number, index in enumerate(chosen):
        original = dataset.to_float(images[index]).contiguous()
        copy = vqvae(original[None].to(device)).images[0].clamp(0, 1).cpu()
        figures.save_grid(torch.stack([original, copy]), output / f"reconstructed_image_{number}.png", columns=2)
        pair = original.numpy(), copy.numpy()
        errors.append((mean_squared_error(*pair), peak_signal_noise_ratio(*pair, data_range=1.0), similarity(*pair)))
        print("image {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(number, *errors[-1]))
        if 2 * number < figures.room(*images.shape[2:]):
            shown.append((original, copy))
    print("mean of {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(len(errors), *np.mean(errors, 0)))
    if min(images.shape[2:]) < SSIM_WINDOW:
        print(f"SSIM: its window of {SSIM_WINDOW} pixels is larger than these images and reaches over their edges")
    originals, copies = (torch.stack(part) for part in zip(*shown))
    figures.save_pairs(originals, copies, output / "reconstructions.png", columns=10)
    originals, copies = originals[:4], copies[:4]  # rows of latents.png
    figures.save_latents(originals, copies, vqvae.quantize(originals.to(device))[0], args.LATENT_CHANNEL,
                         vqvae.config.num_codes, output / "latents.png")
    first = f" of the first {len(shown)}" if len(shown) < len(chosen) else ""
    print(f"wrote {output / 'reconstructed_image_0.png'} ..., the grid {output / 'reconstructions.png'}{first}, "
          f"originals over reconstructions, and {output / 'latents.png'}")


if __name__ == "__main__":
    run_script(main, globals())
