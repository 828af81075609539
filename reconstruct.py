"""Put images through the VQ-VAE and measure what is lost.

Reads `vqvae.pt` from OUTPUT_DIR; writes `reconstructed_image_0.png` ..., each original beside its reconstruction,
the grid `reconstructions.png`, originals over reconstructions, and `latents.png`, what lies between them.

MSE, PSNR and SSIM are scikit-image's, of images in [0, 1] (data range 1).
"""
import argparse
import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

import checkpoint
import dataset
import decode
import devices
import figures
import folder
from cli import UserError
from cli import run as run_script
from decode import Reading

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # a data set, a folder or one image file; None: the data set that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # choose among the first N images; 0: all
IMAGE_SIZE = None         # of a folder's or a file's images, as in the training; "auto": their own
NUM_IMAGES = 10           # images to reconstruct, drawn from the test split, or from all images of an unknown folder
LATENT_CHANNEL = 0        # the channel of z_e and z_q to show in latents.png
SEED = 0                  # of the choice of images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def similarity(original: np.ndarray, copy: np.ndarray) -> float:
    """SSIM of two images (C, H, W) in [0, 1] as Wang et al. (2004) define it: Gaussian window of sigma 1.5, 11 pixels
    wide. The mean leaves out the 5 pixels at the edges, where the window meets mirrored ones; images of fewer than
    11 pixels a side leave out fewer.
    """
    window = min(11, *(side - (side + 1) % 2 for side in original.shape[1:]))
    return structural_similarity(original, copy, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False, win_size=window)


def find_images(args: argparse.Namespace, stored: dict) -> Tensor:
    """The uint8 images (N, C, H, W) that DATASET offers: a test split, or all of a folder or file that the VQ-VAE was
    not trained on, with the channels it needs but of any size. UserError if they do not fit it, or are too few.
    """
    reading = Reading(**stored["data"]["reading"])._replace(image_size=args.IMAGE_SIZE)
    path = Path(args.DATASET)
    if path.is_file():
        return decode.read(args.DATASET, reading._replace(channels=stored["data"]["channels"]))
    learnt = Path(stored["data"]["dataset"])
    if path.is_dir() and args.DATASET not in ("glyphs", *dataset.TORCHVISION) and path.resolve() != learnt.resolve():
        # the channels as they were found then: for the folder of the training that changes no pixel
        reading = reading._replace(channels=stored["data"]["channels"])
        if not holds_training_images(args, stored):
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
    images = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading).test.images
    checkpoint.check_images(stored, images)
    if args.NUM_IMAGES > len(images):
        raise UserError(f"NUM_IMAGES (--num-images) of {args.NUM_IMAGES} is more than the {len(images)} test images")
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
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.SEED))[:args.NUM_IMAGES]
    originals = dataset.to_float(images[chosen]).contiguous()
    copies = torch.cat([vqvae(part.to(device)).images.clamp(0, 1).cpu() for part in originals.split(1)])
    output = Path(args.OUTPUT_DIR)
    rows = []
    for number, (original, copy) in enumerate(zip(originals, copies)):
        figures.save_grid(torch.stack([original, copy]), output / f"reconstructed_image_{number}.png", columns=2)
        pair = original.numpy(), copy.numpy()
        rows.append((mean_squared_error(*pair), peak_signal_noise_ratio(*pair, data_range=1.0), similarity(*pair)))
        print("image {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(number, *rows[-1]))
    print("mean of {}: MSE {:.5f}, PSNR {:.2f} dB, SSIM {:.4f}".format(len(rows), *np.mean(rows, 0)))
    if min(originals.shape[2:]) < 11:
        print("SSIM: its window of 11 pixels is larger than these images and reaches over their edges")
    figures.save_pairs(originals, copies, output / "reconstructions.png", columns=10)
    z_e = vqvae.quantizer.normalise(vqvae.latents(originals[:4].to(device))).permute(0, 3, 1, 2)
    codes = vqvae.encode(originals[:4].to(device))
    figures.save_latents(originals[:4], copies[:4], z_e, vqvae.quantizer.look_up(codes), codes, args.LATENT_CHANNEL,
                         vqvae.config.num_codes, output / "latents.png")
    print(f"wrote {output / 'reconstructed_image_0.png'} ..., the grid {output / 'reconstructions.png'}, originals "
          f"over reconstructions, and {output / 'latents.png'}")


if __name__ == "__main__":
    run_script(main, globals())
