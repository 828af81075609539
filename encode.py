"""Turn images into codes, and codes into images.

Encodes the images of DATASET and writes `codes.npz` to OUTPUT_DIR: `codes` (N, grid height, grid width), `files`, the
path of each image, empty where images are of no files, and `size`, height and width of the images in pixels. With CODES
it decodes such a file instead, and writes `decoded_0.png` ... Weights are read from OUTPUT_DIR or PRETRAINED.
"""
import running.start  # noqa: F401

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from judging import testset
from modules import VQVAE
from priors import runs
from priors.codes import PIXELS, encode, to_images
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script
from running.progress import Bar

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
DATASET = None            # a folder, an image file or a data set; None: the test split of that of the training
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # encode the first N images alone; 0: all; None: as in the training
IMAGE_SIZE = None         # of a folder's images; None: the training's, of a file too; "auto": their own
CROP = ""                 # of an image file: left, top and size in pixels of the square to take, such as "40 10 120"
INVERT = False            # of an image file: light becomes dark, where the training's images are light on dark
CODES = ""                # a codes.npz to decode; "": encode images
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def read(path: str, vqvae: VQVAE) -> tuple[torch.Tensor, int, int]:
    """The codes (N, grid height, grid width) in a file, and height and width of their images. UserError if it is no
    such file, or of another VQ-VAE.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            codes, (height, width) = content["codes"], content["size"].tolist()
        if codes.dtype.kind not in "iu" or codes.ndim != 3 or not codes.size:
            raise ValueError
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, EOFError):
        raise UserError(f"CODES (--codes): {path} is no file of encode.py, or damaged") from None
    if codes.shape[1:] != vqvae.grid(height, width) or not 0 <= codes.min() <= codes.max() < vqvae.config.num_codes:
        raise UserError(f"CODES (--codes): {path} holds codes of another VQ-VAE than the one here, which has "
                        f"{vqvae.config.num_codes} and one for {vqvae.config.downsample} pixels a side")
    return torch.from_numpy(codes.astype(np.int64)), height, width


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    output = Path(args.OUTPUT_DIR)
    if args.CODES:
        codes, height, width = read(args.CODES, vqvae)
        files.remove(output, "decoded_*.png")  # of an earlier call
        for part in Bar(torch.arange(len(codes)).split(max(1, PIXELS // (height * width))), desc="decoding"):
            for number, image in zip(part, to_images(vqvae, codes[part].to(device), height, width)):
                figures.save_image(image, output / f"decoded_{number}.png")
        print(f"wrote {len(codes)} images to {output / 'decoded_0.png'} ...")
        return
    images, names, _ = testset.find(args, stored, stored["data"]["channels"])
    codes = encode(vqvae, images)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, codes=codes.numpy(), files=np.array(names, dtype=str), size=np.array(images.shape[2:]))
    with files.atomic(output / "codes.npz") as file:
        file.write(buffer.getbuffer())
    print(f"wrote the codes of {len(codes)} images, {codes.shape[1]}x{codes.shape[2]} each, to {output / 'codes.npz'}")


if __name__ == "__main__":
    run_script(main, globals())
