"""Look at a data set and train nothing: say how it is interpreted, and save some images of every class.

    python dataset.py path/to/folder

prints images, size, splits, classes and what was left out and why, and writes OUTPUT_DIR/dataset.png. The other
constants are those of train_vqvae.py.
"""
import argparse

import dataset
from loading import summary
from loading.reading import Reading
from loading.settings import *  # noqa: F403
from running.cli import run as run_script

DATASET = "glyphs"        # a data set's name or a folder of images; may stand without its flag, before all others
DATA_DIR = "data"         # where data sets are kept, or downloaded to
OUTPUT_DIR = "output"     # where dataset.png is written
LIMIT = 0                 # use only the first N images of the training and of the test part; 0: all
IMAGE_SIZE = "auto"       # of a folder's images; "auto": a common one; 64 or 256x128 (height x width): resized, cropped
CHANNELS = "auto"         # of a folder's images; "auto": 1 if all are grey, or else 3; 1: grey; 3: RGB
CLASSES = "auto"          # of a folder: by the rule in docs/DATA.md; "folders": its first folders; "none": no classes


def main(args: argparse.Namespace) -> None:
    reading = Reading.of(args)
    data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading, args.OUTPUT_DIR)
    summary.show(args.DATASET, data, args.OUTPUT_DIR)


def start() -> None:
    """Run as the script dataset.py."""
    run_script(main, globals())
