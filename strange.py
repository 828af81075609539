"""Make images that a prior should find strange: test images, each changed in a known way. Try score.py on them.

Reads the data set that `vqvae.pt` in OUTPUT_DIR or PRETRAINED learnt. Writes folders of PNG files to STRANGE_DIR:
    unchanged     as many other test images as they are, to compare with
    turned        turned by 90 degrees
    upside_down   turned by 180 degrees
    mirrored      left and right exchanged
    erased        a square is filled with the commonest value of the image, where there was something else
    added         a square of the value that is furthest from it, anywhere
A square is a fifth of the shorter side; the names of the files say where: 00012_row_4_column_10.png, of its top left
pixel.
"""
import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import dataset
import figures
import testset
from cli import UserError
from cli import run as run_script

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
STRANGE_DIR = "strange"   # where the folders are written: a directory of their own
DATASET = None            # the data set; None: that of the training
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # use only the first N images of the test split; 0: all
NUM_IMAGES = 2000         # in every folder; at most half of the test split
SEED = 0                  # of the choice of images, and of the places of squares

SHARE = 5                 # a square is this part of the shorter side


def commonest(image: Tensor) -> int:
    """The commonest value of a uint8 image (C, H, W)."""
    return int(image.flatten().bincount().argmax())


def furthest(image: Tensor) -> int:
    """Black or white, whichever is further from the commonest value of a uint8 image."""
    return 255 if commonest(image) < 128 else 0


def place(image: Tensor, side: int, generator: torch.Generator, busy: bool) -> tuple[int, int]:
    """Row and column of the top left pixel of a square within an image (C, H, W). busy: the square holds a pixel drawn
    in proportion to its distance from the commonest value, so that something is erased.
    """
    height, width = image.shape[1:]
    weights = (image.float() - commonest(image)).abs().mean(0).flatten()
    if not busy or weights.sum() == 0:
        weights = torch.ones(height * width)
    row, column = divmod(int(torch.multinomial(weights, 1, generator=generator)), width)
    return min(max(row - side // 2, 0), height - side), min(max(column - side // 2, 0), width - side)


def with_square(image: Tensor, name: str, generator: torch.Generator) -> tuple[Tensor, str]:
    """An image with a square that is "erased" or "added", and where it is, for the name of its file."""
    side = round(min(image.shape[1:]) / SHARE) or 1
    row, column = place(image, side, generator, busy=name == "erased")
    image = image.clone()
    image[:, row:row + side, column:column + side] = commonest(image) if name == "erased" else furthest(image)
    return image, f"_row_{row}_column_{column}"


def change(image: Tensor, name: str, generator: torch.Generator) -> tuple[Tensor, str]:
    """A uint8 image (C, H, W) changed as the folder of this name says, and what the name of its file says of it."""
    if name in ("erased", "added"):
        return with_square(image, name, generator)
    return {"unchanged": lambda: image, "turned": lambda: image.rot90(1, (1, 2)),
            "upside_down": lambda: image.rot90(2, (1, 2)), "mirrored": lambda: image.flip(2)}[name](), ""


def main(args: argparse.Namespace) -> None:
    stored = checkpoint.load(checkpoint.weights_dir(args), "vqvae")
    args = checkpoint.fill(args, stored)
    images = testset.load(args, stored).test.images
    names = ["unchanged", "upside_down", "mirrored", "erased", "added"]
    if images.shape[2] == images.shape[3]:
        names.insert(1, "turned")
    root, count = Path(args.STRANGE_DIR), min(args.NUM_IMAGES, len(images) // 2)
    if count == 0:
        raise UserError(f"DATASET (--dataset): the test split of {args.DATASET} has one image: two are needed")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"STRANGE_DIR (--strange-dir): {root} is not empty: remove it, or name another directory")
    generator = torch.Generator().manual_seed(args.SEED)
    chosen = torch.randperm(len(images), generator=generator)[:2 * count]
    with tqdm(desc="writing", total=len(names) * count, unit="image", leave=False) as bar:
        for name in names:
            (root / name).mkdir(parents=True)
            for i in (chosen[:count] if name == "unchanged" else chosen[count:]).tolist():
                image, where = change(images[i], name, generator)
                figures.save_image(dataset.to_float(image), root / name / f"{i:05}{where}.png")
                bar.update()
    print(f"wrote {count} images each to {', '.join(str(root / name) for name in names)}: compare them by "
          f"score.py --dataset {root / 'unchanged'} --against {root / names[1]}")


if __name__ == "__main__":
    run_script(main, globals())
