"""Complete images: a part of each is given, and the prior draws codes for the rest, several times.

Reads `vqvae.pt` and a prior, such as `transformer.pt`, from OUTPUT_DIR or PRETRAINED. Writes
`completion_<i>_<j>.png`, the j-th completion of image i, and the grid `completions.png`, a row for each image: the
original, its given part, and the completions.

MASK says which codes of the grid are given ("border": all but the center). Hidden pixels are filled in before encoding,
so that none leaks through the encoder's receptive field. The whole grid of codes is decoded, so the given part of a
completion is a reconstruction.

A masked prior, `masked.pt`, conditions every code on all given codes. The other priors draw in raster order, without
the given codes that come after the code to draw. So masked.pt is the default if given codes come after hidden ones.

A line gives the mean bits of the hidden codes of an original under the distribution from which the prior draws them,
but for TEMPERATURE, TOP_K, TOP_P and GUIDANCE. With a masked prior they depend on STEPS, as the codes of one round are
drawn independently.
"""
import running.start  # noqa: F401

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from judging import testset
from loading import decode
from loading.reading import Reading
from modules import VQVAE, grid_size, pad
from priors import runs
from priors.codes import completion_bits
from priors.draws import Draw
from priors.sampler import draw_grids
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script
from running.progress import Bar
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as transformer.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
PRIOR = None              # the prior to draw from; None: "masked" if there, but with MASK "top" the best other one
DATASET = None            # the data set whose test images are completed, or one image file; None: that of the training
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # choose among the first N images; 0: all; None: as in the training
MASK = "top"              # given: "top", "bottom", "left", "right", "center", "border", or what an image file has white
CLASS_GIVEN = False       # give the prior each image's label, too
CROP = ""                 # of an image file: left, top and size in pixels of the square to take, such as "40 10 120"
INVERT = False            # of an image file: light becomes dark, where the training's images are light on dark
NUM_IMAGES = 8            # images to complete, drawn from the test split
NUM_COMPLETIONS = 6       # completions of each
TEMPERATURE = 1.0         # divides the logits: below 1 plays safe, above 1 is bolder; 0: always the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = "auto"            # draw among the fewest codes that reach probability p; "auto": 0.95, but 1 with guidance
GUIDANCE = "auto"         # above 1: clearer classes, at twice the time; 1: none; "auto": 1.25 with CLASS_GIVEN
STEPS = 16                # rounds in which a masked prior draws the rest; 0: one for each code, as other priors draw
SEED = 0                  # of the choice of images and of the draws: the same seed gives the same completions
BATCH_SIZE = 64           # grids drawn, and images encoded, at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def read_mask(mask: str, height: int, width: int, side: int) -> Tensor:
    """A bool for each code: whether it is given. height, width: of the image; side: pixels a side that a code covers.

    "top", "bottom", "left" and "right" give the codes with their centre in that half, "center" those in the middle half
    of both sides, "border" all others. An image file, made grey and resized, gives the codes of which every pixel is
    white. UserError for any other mask, and if no code or every code is given.
    """
    rows, columns = grid_size(height, width, side)
    row = ((torch.arange(rows) + 0.5) * side / height).view(-1, 1).expand(rows, columns)
    column = ((torch.arange(columns) + 0.5) * side / width).expand(rows, columns)
    areas = {"top": row < 0.5, "bottom": row > 0.5, "left": column < 0.5, "right": column > 0.5,
             "center": ((row - 0.5).abs() < 0.25) & ((column - 0.5).abs() < 0.25)}
    areas["border"] = ~areas["center"]
    if mask in areas:
        given = areas[mask]
    elif Path(mask).is_file():
        image = dataset.to_float(decode.read(mask, Reading(channels=1))[:1])
        pixels = pad(F.adaptive_avg_pool2d(image, (height, width)), side)
        given = -F.max_pool2d(-pixels, side)[0, 0] > 0.5
    else:
        raise UserError(f"MASK (--mask): there is no image file {mask!r}, and it is none of {', '.join(areas)}")
    if given.all() or not given.any():
        amount = "all" if given.any() else "none"
        raise UserError(f"MASK (--mask): {mask!r} gives {amount} of the {rows}x{columns} codes")
    return given


def enlarge(given: Tensor, factor: int) -> Tensor:
    """A mask (H, W) with every element repeated `factor` times along both sides."""
    return given.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def paint_over(images: Tensor, given: Tensor) -> Tensor:
    """Images (N, C, H, W) with the pixels replaced where given (H, W) is False: outwards from the given ones, ring by
    ring, by the mean of the neighbours in earlier rings.
    """
    known = given.float().expand(1, 1, *given.shape)
    images = images * known
    while not known.all():
        weight = F.avg_pool2d(known, 3, 1, 1)
        ring = (known == 0) & (weight > 0)
        images = torch.where(ring, F.avg_pool2d(images, 3, 1, 1) / weight.clamp_min(1e-6), images)
        known = known + ring
    return images


def find_images(args: argparse.Namespace, stored: dict) -> tuple[Tensor, Tensor, list[str]]:
    """NUM_IMAGES images (N, C, H, W) of DATASET, uint8, at most as many as an image file has; their labels (N,); and
    the names of the classes. UserError if a data set has fewer.
    """
    if Path(args.DATASET).is_file():
        images, labels, class_names = testset.read_own(args, stored), None, []
    else:
        data = testset.load(args, stored)
        images, labels, class_names = data.test.images, data.test.labels, data.class_names
        testset.check_enough(images, args.NUM_IMAGES)
    chosen = testset.choose(images, args.NUM_IMAGES, args.SEED)
    return images[chosen], torch.zeros_like(chosen) if labels is None else labels[chosen], class_names


@torch.no_grad()
def encode_given(vqvae: VQVAE, model: nn.Module, images: Tensor, labels: Tensor, given: Tensor,
                 args: argparse.Namespace) -> tuple[Tensor, float]:
    """The codes (N, height, width) of the given part of images (N, C, H, W), -1 where a code is hidden, and the mean
    bits of the hidden codes of the originals. given: which codes (height, width) are.
    """
    device, (height, width) = next(vqvae.parameters()).device, images.shape[2:]
    pixels, given = enlarge(given, vqvae.config.downsample)[:height, :width].to(device), given.to(device)
    known, bits = [], []
    for part, label in zip(images.split(args.BATCH_SIZE), labels.split(args.BATCH_SIZE)):
        originals = dataset.to_float(part).to(device)
        seen, true = vqvae.encode(paint_over(originals, pixels)), vqvae.encode(originals)
        codes = torch.where(given, seen, true)
        bits.append(completion_bits(model, codes, label.to(device), given, args.STEPS).cpu())
        known.append(seen.masked_fill(~given, -1).cpu())
    return torch.cat(known), torch.cat(bits).mean().item()


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    size = stored["data"]["height"], stored["data"]["width"]
    grid, side, output = vqvae.grid(*size), vqvae.config.downsample, Path(args.OUTPUT_DIR)
    given = read_mask(args.MASK, *size, side)
    both_sides = bool((given.flatten().int().diff() > 0).any())  # a given code comes after a hidden one
    prior, model = runs.load_prior(checkpoint.weights_dir(args), stored, args.PRIOR, both_sides)
    model.to(device)
    images, labels, class_names = find_images(args, stored)
    if args.CLASS_GIVEN and class_names != prior["data"]["class_names"]:
        raise UserError("CLASS_GIVEN (--class-given): the classes of DATASET are not those that the prior learnt")
    guidance, top_p = runs.choose_guidance(args.GUIDANCE, args.TOP_P, prior, args.CLASS_GIVEN,
                                           "give it by CLASS_GIVEN (--class-given)")
    how = Draw(args.TEMPERATURE, args.TOP_K, top_p, guidance, args.STEPS)
    if not args.CLASS_GIVEN:
        labels = torch.full_like(labels, model.num_classes)
    known, bits = encode_given(vqvae, model, images, labels, given, args)
    image = torch.arange(len(images)).repeat_interleave(args.NUM_COMPLETIONS)  # of every completion
    files.remove(output, "completion_*_*.png")  # of an earlier call
    rows = min(len(images), max(1, figures.room(*size) // (2 + args.NUM_COMPLETIONS)))
    originals = dataset.to_float(images[:rows])
    parts = torch.where(enlarge(given, side)[:size[0], :size[1]], originals, figures.GREY)
    shown = [[*pair] for pair in zip(originals, parts)]  # the rows of the grid
    total = math.ceil(len(image) / args.BATCH_SIZE) * grid[0]
    with Bar(desc="completing", total=total, unit="row") as bar:
        drawn = draw_grids(model, labels[image], grid, args.SEED, args.BATCH_SIZE, how,
                           known=known[image], on_row=bar.update)
        completions = (completion.cpu() for codes in drawn for completion in vqvae.decode(codes, *size))
        for number, completion in enumerate(completions):
            i, j = divmod(number, args.NUM_COMPLETIONS)
            figures.save_image(completion, output / f"completion_{i}_{j}.png")
            if i < rows:
                shown[i].append(completion)
    figures.save_grid(torch.stack(sum(shown, [])), output / "completions.png", len(shown[0]))
    hidden = int((known[0] < 0).sum())  # codes of an image
    drawn = f"in {min(args.STEPS or hidden, hidden)} rounds, each from the codes that are given or of earlier rounds" \
        if prior["stage"] == "masked" else "in raster order, each from the codes before it"
    print(f"the {hidden} hidden codes of an original take {bits:.1f} bits by {prior['stage']}.pt, drawn {drawn}")
    first = f" of the first {rows}" if rows < len(images) else ""
    print(f"wrote {args.NUM_COMPLETIONS} completions by {prior['stage']}.pt of each of {len(images)} images to "
          f"{output / 'completion_0_0.png'} ... and the grid {output / 'completions.png'}{first}")


if __name__ == "__main__":
    run_script(main, globals())
