"""Make images that a prior should find strange: test images, each changed in a known way. Try score.py on them.

Reads the data set that `vqvae.pt` in OUTPUT_DIR or PRETRAINED learnt. Writes folders of PNG files to STRANGE_DIR:
    unchanged     as many other test images, not changed, to compare with
    turned        turned by 90 degrees; of square images alone
    upside_down   turned by 180 degrees
    mirrored      left and right exchanged
    erased        a square is filled with the commonest value of any channel, where there was something else
    added         a square, black or white, what is further from that value, anywhere
The names of the files say where the top left pixel of a square is: 00012_row_4_column_10.png.
"""
import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint
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
SQUARE = 0.2              # side of a square, as a share of the image's shorter side
SEED = 0                  # of the choice of images, and of the places of squares

WHOLE = {"unchanged": lambda image: image, "turned": lambda image: image.rot90(1, (1, 2)),
         "upside_down": lambda image: image.rot90(2, (1, 2)), "mirrored": lambda image: image.flip(2)}
SQUARES = "erased", "added"


def commonest(image: Tensor) -> int:
    """The commonest value of a uint8 image (C, H, W)."""
    return int(image.flatten().bincount().argmax())


def with_square(image: Tensor, name: str, share: float, generator: torch.Generator) -> tuple[Tensor, str]:
    """An image (C, H, W) with a square that is "erased" or "added", and where it is, for the name of its file. share:
    SQUARE.
    """
    height, width = image.shape[1:]
    side, value = round(share * min(height, width)) or 1, commonest(image)
    rows, columns = height - side + 1, width - side + 1  # where its top left pixel can be
    place, image = int(torch.randint(rows * columns, (), generator=generator)), image.clone()
    row, column = divmod(place, columns)
    if name == "erased":  # about a pixel drawn in proportion to its distance from the value
        distance = (image.float() - value).abs().mean(0).flatten()
        if distance.sum() > 0:
            y, x = divmod(int(torch.multinomial(distance, 1, generator=generator)), width)
            row, column = (min(max(middle - side // 2, 0), most - 1) for middle, most in ((y, rows), (x, columns)))
    image[:, row:row + side, column:column + side] = value if name == "erased" else 255 if value < 128 else 0
    return image, f"_row_{row}_column_{column}"


def change(image: Tensor, name: str, share: float, generator: torch.Generator) -> tuple[Tensor, str]:
    """A uint8 image (C, H, W) changed as the folder of this name says, and what the name of its file says of it. share:
    SQUARE.
    """
    return with_square(image, name, share, generator) if name in SQUARES else (WHOLE[name](image), "")


def main(args: argparse.Namespace) -> None:
    stored = checkpoint.load(checkpoint.weights_dir(args), "vqvae")
    root = Path(args.STRANGE_DIR)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"STRANGE_DIR (--strange-dir): {root} is not empty: remove it, or name another directory")
    args = checkpoint.fill(args, stored)
    images = testset.load(args, stored).test.images
    count = min(args.NUM_IMAGES, len(images) // 2)
    if count == 0:
        raise UserError(f"DATASET (--dataset): the test split of {args.DATASET} has one image: two are needed")
    square = images.shape[2] == images.shape[3]
    names = [name for name in (*WHOLE, *SQUARES) if square or name != "turned"]
    generator = torch.Generator().manual_seed(args.SEED)
    chosen = torch.randperm(len(images), generator=generator)[:2 * count]
    with tqdm(desc="writing", total=len(names) * count, unit="image", leave=False) as bar:
        for name in names:
            (root / name).mkdir(parents=True)
            for i in (chosen[:count] if name == "unchanged" else chosen[count:]).tolist():
                image, where = change(images[i], name, args.SQUARE, generator)
                pixels = image.permute(1, 2, 0).numpy()
                Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(root / name / f"{i:05}{where}.png")
                bar.update()
    print(f"wrote {count} images each to {', '.join(str(root / name) for name in names)}")


if __name__ == "__main__":
    run_script(main, globals())
