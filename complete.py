"""Complete images: a part of each is given, and the prior draws codes for the rest, several times.

Reads `vqvae.pt` and a prior, such as `transformer.pt`, from OUTPUT_DIR or PRETRAINED. Writes
`completion_<i>_<j>.png`, the j-th completion of image i, and the grid `completions.png`, a row for each image: the
original, its given part, and the completions.

MASK says which codes of the grid are given ("border": all but the center), and so which pixels: those that these codes
stand for. Hidden pixels are filled in before encoding, outwards from the given ones, so that none leaks through the
encoder's receptive field. The whole grid of codes is decoded, so the given part of a completion is a reconstruction.

A masked prior, `masked.pt`, draws each code knowing all given codes. The other priors draw in raster order: with the
top given, each code is drawn knowing all given codes; with another mask it is drawn without the given codes that come
after it. So masked.pt, where it is there and PRIOR does not say otherwise, is taken if given codes come after hidden
ones.

A line says how well the prior foretells what is hidden: the bits that the hidden codes of an original take, on average,
under the distribution from which the prior draws them, but for TEMPERATURE, TOP_K, TOP_P and GUIDANCE. With a masked
prior they depend on STEPS, as codes of one round do not know of each other.

With two levels of codes, what is given is whole codes of the coarse grid and the fine codes that these stand for.
"""
import running.start  # noqa: F401

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import dataset
from judging import testset
from loading import decode
from loading.decode import Reading
from modules import grid_size, pad
from priors import runs
from priors.codes import completion_bits
from priors.draws import Draw
from priors.sampler import draw_grids
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as transformer.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
PRIOR = None              # the prior to draw from; None: "masked" if there, but with the top given the best other one
DATASET = None            # the data set whose test images are completed, or one image file; None: that of the training
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # choose among the first N images; 0: all; None: as in the training
MASK = "top"              # given: "top", "bottom", "left", "right", "center", "border", or what an image file has white
CLASS_GIVEN = False       # give the prior each image's label, too
NUM_IMAGES = 8            # images to complete, drawn from the test split
NUM_COMPLETIONS = 6       # completions of each
TEMPERATURE = 1.0         # divides the logits: below 1 plays safe, above 1 is bolder; 0: always the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = "auto"            # draw among the fewest codes that reach probability p; "auto": 0.9, but 1 with guidance
GUIDANCE = "auto"         # above 1: clearer classes, at twice the time; 1: none; "auto": 1.25 with CLASS_GIVEN
STEPS = 16                # rounds in which a masked prior draws the rest; 0: one for each code, as other priors draw
SEED = 0                  # of the choice of images and of the draws: the same seed gives the same completions
BATCH_SIZE = 64           # grids drawn, and images encoded, at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def read_mask(mask: str, height: int, width: int, side: int) -> Tensor:
    """A bool for each code: whether it is given. height, width: of the image; side: pixels a side that a code covers.

    mask "top", "bottom", "left" or "right" gives the codes whose centre lies in that half of the image; "center" those
    whose centre lies in the middle half of both sides, "border" all others. An image file is made grey and resized to
    the image; it gives the codes of which every pixel is white. UserError for any other mask, and if no code or every
    code is given.
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
    """Images (N, C, H, W) with the pixels replaced where given (H, W) is False.

    The replacement works outwards from the given pixels, ring by ring: each pixel is the mean of its neighbours in
    earlier rings.
    """
    known = given.float().expand(1, 1, *given.shape)
    images = images * known
    while not known.all():
        weight = F.avg_pool2d(known, 3, 1, 1)
        ring = (known == 0) & (weight > 0)
        images = torch.where(ring, F.avg_pool2d(images, 3, 1, 1) / weight.clamp_min(1e-6), images)
        known = known + ring
    return images


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    weights = checkpoint.weights_dir(args)
    stored, vqvae = runs.load_vqvae(weights)
    vqvae.to(device)
    args = checkpoint.fill(args, stored)
    grids = vqvae.grids(stored["data"]["height"], stored["data"]["width"])
    side = vqvae.config.downsample * 2**(len(grids) - 1)  # pixels a coarse code stands for
    given = read_mask(args.MASK, stored["data"]["height"], stored["data"]["width"], side)
    both_sides = bool((given.flatten().int().diff() > 0).any())  # a given code comes after a hidden one
    priors, models = runs.load_prior(weights, stored, args.PRIOR, both_sides)
    models.to(device)
    prior, num_classes = priors[-1], models[-1].num_classes
    if Path(args.DATASET).is_file():
        images, class_names = testset.read_file(args.DATASET, stored), []
        args.NUM_IMAGES = min(args.NUM_IMAGES, len(images))
    else:
        data = testset.load(args, stored)
        images, class_names = data.test.images, data.class_names
        testset.check_enough(images, args.NUM_IMAGES)
    if args.CLASS_GIVEN and class_names != prior["data"]["class_names"]:
        raise UserError("CLASS_GIVEN (--class-given): the classes of DATASET are not those that the prior learnt")
    guidance, top_p = runs.choose_guidance(args.GUIDANCE, args.TOP_P, priors, args.CLASS_GIVEN,
                                                 "give it by CLASS_GIVEN (--class-given)")
    chosen = testset.choose(images, args.NUM_IMAGES, args.SEED)
    labels = data.test.labels[chosen] if args.CLASS_GIVEN and num_classes \
        else torch.full_like(chosen, num_classes)
    size = images.shape[2:]
    pixels = enlarge(given, side)[:size[0], :size[1]].to(device)

    def originals(index: Tensor) -> Tensor:
        return dataset.to_float(images[index]).to(device)

    masks = [enlarge(given, 2**level).to(device) for level in range(len(grids))]  # of every level: what is given
    known, bits = [], []
    for part, label in zip(chosen.split(args.BATCH_SIZE), labels.split(args.BATCH_SIZE)):
        seen, true = vqvae.encode(paint_over(originals(part), pixels)), vqvae.encode(originals(part))
        codes = [torch.where(*three) for three in zip(masks, seen, true)]
        bits.append(sum(completion_bits(model, codes[level], label.to(device), masks[level], args.STEPS,
                                        *codes[max(0, level - 1):level]).cpu() for level, model in enumerate(models)))
        known.append([level.masked_fill(~mask, -1).cpu() for level, mask in zip(seen, masks)])
    known, bits = [torch.cat(parts) for parts in zip(*known)], torch.cat(bits).mean()
    numbers = torch.arange(args.NUM_IMAGES * args.NUM_COMPLETIONS)  # of the completions, image by image
    image = numbers // args.NUM_COMPLETIONS
    parts = numbers.split(args.BATCH_SIZE)
    output = Path(args.OUTPUT_DIR)
    files.remove(output, "completion_*_*.png")  # of an earlier call
    columns = 2 + args.NUM_COMPLETIONS
    rows = min(args.NUM_IMAGES, max(1, figures.room(*images.shape[2:]) // columns))
    shown = []  # the images of the grid, row by row
    with tqdm(desc="completing", total=len(parts) * sum(rows for rows, _ in grids), unit="row", leave=False) as bar:
        drawn = draw_grids(models, labels[image], grids, args.SEED, args.BATCH_SIZE,
                           Draw(args.TEMPERATURE, args.TOP_K, top_p, guidance, args.STEPS),
                           known=[level[image] for level in known], on_row=bar.update)
        for part, codes in zip(parts, drawn):
            for number, completion in zip(part.tolist(), vqvae.decode(codes, *size)):
                i, j = divmod(number, args.NUM_COMPLETIONS)
                figures.save_image(completion, output / f"completion_{i}_{j}.png")
                if i < rows:
                    if j == 0:
                        [original] = originals(chosen[i:i + 1])
                        shown += [original, torch.where(pixels, original, figures.GREY)]
                    shown.append(completion)
    figures.save_grid(torch.stack(shown), output / "completions.png", columns)
    hidden = sum(int((~mask).sum()) for mask in masks)
    drawn = f"in {min(args.STEPS or hidden, hidden)} rounds, each from the codes that are given or of earlier rounds" \
        if prior["stage"] == "masked" else "in raster order, each from the codes before it"
    print(f"the {hidden} hidden codes of an original take {bits:.1f} bits by {prior['stage']}.pt, drawn {drawn}")
    first = f" of the first {rows}" if rows < args.NUM_IMAGES else ""
    print(f"wrote {args.NUM_COMPLETIONS} completions by {prior['stage']}.pt of each of {args.NUM_IMAGES} images to "
          f"{output / 'completion_0_0.png'} ... and the grid {output / 'completions.png'}{first}")


if __name__ == "__main__":
    run_script(main, globals())
