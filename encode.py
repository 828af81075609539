"""Turn images into codes, and codes into images.

Encodes the images of DATASET and writes `codes.npz` to OUTPUT_DIR: `codes` (N, grid height, grid width), `files`, the
path of each image, empty where images are of no files, and `size`, height and width of the images in pixels. With CODES
it decodes such a file instead, and writes `decoded_0.png` ... Weights are read from OUTPUT_DIR or PRETRAINED.

With STREAM the file has, in the place of `codes`, `stream`: the codes arithmetic-coded by the prior, without a class;
`count`, how many grids, and `sum`, which tells whether they came back. `sizes.csv` has the mean bytes of an image: in
the stream, as codes of equal length, and of the first 200 images as PNG and JPEG files, headers included.
"""
import running.start  # noqa: F401

import argparse
import io
import math
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from judging import testset
from modules import VQVAE
from priors import runs, stream
from priors.codes import PIXELS, encode, to_images
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script
from running.progress import Bar
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
DATASET = None            # a folder, an image file or a data set; None: the test split of that of the training
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # encode the first N images alone; 0: all; None: as in the training
IMAGE_SIZE = None         # of a folder's images; None: the training's, of a file too; "auto": their own
CROP = ""                 # of an image file: left, top and size in pixels of the square to take, such as "40 10 120"
INVERT = False            # of an image file: light becomes dark, where the training's images are light on dark
CODES = ""                # a codes.npz to decode; "": encode images
STREAM = False            # arithmetic-code the codes by the prior: fewer bytes, to be read on the same kind of machine
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"

# images of which STREAM measures PNG and JPEG files
MEASURED = 200


def read(path: str, vqvae: VQVAE, prior: Callable[[], nn.Module]) -> tuple[torch.Tensor, int, int]:
    """The codes (N, grid height, grid width) in a file, and height and width of their images. UserError if it is no
    such file, or of another VQ-VAE. prior: how to load the one that reads a stream.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            height, width = content["size"].tolist()
            if "stream" in content:
                grid = vqvae.grid(height, width)
                codes = stream.unpack(prior(), content["stream"], int(content["count"]), grid).numpy()
                if zlib.crc32(codes.astype(np.int32).tobytes()) != content["sum"]:
                    raise UserError(f"CODES (--codes): the stream in {path} was written by another prior, or on a "
                                    f"machine that rounds differently, or is damaged")
            else:
                codes = content["codes"]
        if codes.dtype.kind not in "iu" or codes.ndim != 3 or not codes.size:
            raise ValueError
    except (KeyError, ValueError, TypeError, AssertionError, zipfile.BadZipFile, EOFError):
        raise UserError(f"CODES (--codes): {path} is no file of encode.py, or damaged") from None
    if codes.shape[1:] != vqvae.grid(height, width) or not 0 <= codes.min() <= codes.max() < vqvae.config.num_codes:
        raise UserError(f"CODES (--codes): {path} holds codes of another VQ-VAE than the one here, which has "
                        f"{vqvae.config.num_codes} and one for {vqvae.config.downsample} pixels a side")
    return torch.from_numpy(codes.astype(np.int64)), height, width


def file_sizes(images: torch.Tensor, copies: torch.Tensor) -> dict[str, float]:
    """Mean bytes of uint8 images as PNG, and as JPEG of the lowest quality whose MSE is at most that of copies."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) for image in images]

    def save(**how: Any) -> tuple[float, float]:
        """Mean bytes of a file, and the mean squared error."""
        count, error = 0, 0.0
        for picture in pictures:
            picture.save(buffer := io.BytesIO(), optimize=True, **how)
            count += buffer.tell()
            error += np.square(np.asarray(picture, np.float32) - np.asarray(Image.open(buffer), np.float32)).mean()
        return count / len(pictures), error / len(pictures)

    most = F.mse_loss(copies, images.float()).item()
    found = {"PNG": save(format="PNG")[0]}
    if (quality := 1 + bisect_left(range(1, 96), True, key=lambda q: save(format="JPEG", quality=q)[1] <= most)) < 96:
        found[f"JPEG of quality {quality}, the lowest of no larger MSE"] = save(format="JPEG", quality=quality)[0]
    return found


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    output = Path(args.OUTPUT_DIR)

    def prior() -> nn.Module:
        found, model = runs.load_prior(checkpoint.weights_dir(args), stored)
        if found["stage"] == "masked" or found["data"]["class_names"] and runs.class_dropout(found) == 0:
            raise UserError("STREAM (--stream) needs a prior that has learnt the likelihood of codes without a class: "
                            "one that is not masked, with CLASS_DROPOUT above 0")
        return model

    if args.CODES:
        codes, height, width = read(args.CODES, vqvae, prior)
        files.remove(output, "decoded_*.png")  # of an earlier call
        for part in Bar(torch.arange(len(codes)).split(max(1, PIXELS // (height * width))), desc="decoding"):
            for number, image in zip(part, to_images(vqvae, codes[part].to(device), height, width)):
                figures.save_image(image, output / f"decoded_{number}.png")
        print(f"wrote {len(codes)} images to {output / 'decoded_0.png'} ...")
        return
    images, names, _ = testset.find(args, stored, stored["data"]["channels"])
    codes = encode(vqvae, images)
    content = {"codes": codes.numpy()}
    if args.STREAM:
        packed = stream.pack(prior(), codes)
        total = zlib.crc32(codes.numpy().astype(np.int32).tobytes())
        content = {"stream": packed, "count": np.array(len(codes)), "sum": np.array(total)}
        copies = to_images(vqvae, codes[:MEASURED].long().to(device), *images.shape[2:]).mul(255).round()
        sizes = {"stream by the prior": packed.nbytes / len(codes),
                 "codes of equal length": codes[0].numel() * math.log2(vqvae.config.num_codes) / 8,
                 **file_sizes(torch.as_tensor(images[:MEASURED]), copies)}
        files.write_csv(output / "sizes.csv", [{"": name, "bytes": f"{size:.1f}"} for name, size in sizes.items()])
        print("bytes an image: " + "; ".join(f"{name} {size:.1f}" for name, size in sizes.items()))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content, files=np.array(names, dtype=str), size=np.array(images.shape[2:]))
    with files.atomic(output / "codes.npz") as file:
        file.write(buffer.getbuffer())
    print(f"wrote the codes of {len(codes)} images, {codes.shape[1]}x{codes.shape[2]} each, to {output / 'codes.npz'}")


if __name__ == "__main__":
    run_script(main, globals())
