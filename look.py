"""Look at a data set and train nothing: say what it is taken for, and save some images of every class.

    python dataset.py path/to/folder

prints images, size, splits, classes and what was left out and why, and writes OUTPUT_DIR/dataset.png. The other
constants are those of train_vqvae.py.
"""
import argparse
import sys

import dataset
import summary
from cli import run as run_script
from decode import Reading

DATASET = "glyphs"        # a data set's name or a folder of images; may stand without its flag, before all others
DATA_DIR = "data"         # where data sets are kept, or downloaded to
OUTPUT_DIR = "output"     # where dataset.png is written
LIMIT = 0                 # use only the first N images of the training and of the test part; 0: all
IMAGE_SIZE = "auto"       # of a folder's images; "auto": a common one; 64 or 256x128 (height x width): resized, cropped
CHANNELS = "auto"         # of a folder's images; "auto": 1 if all are grey, or else 3; 1: grey; 3: RGB
NIFTI_AXIS = 2            # how NIfTI volumes are cut into slices: 0 sagittal, 1 coronal, 2 axial
NIFTI_SCALE = "volume"    # intensities are scaled to 8 bits over each "slice", each "volume" or the whole "folder" ...
NIFTI_LOW = 0.5           # ... from this percentile, which becomes black ...
NIFTI_HIGH = 99.5         # ... to this one, which becomes white
MAX_UNREADABLE = 0.01     # share of a folder's files, or images, that may be left out: damaged, or of no fitting size
VALUE_RANGE = "auto"      # black and white of files of more than 8 bits: "0 4095", or "auto": those percentiles of all
CLASSES = "auto"          # of a folder: by the rule in README.md; "folders": its first folders; "none": no classes


def main(args: argparse.Namespace) -> None:
    reading = Reading.of(args)
    data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading, args.OUTPUT_DIR)
    summary.show(args.DATASET, data, args.OUTPUT_DIR)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--dataset")
    run_script(main, globals())
