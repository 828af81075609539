"""Score images: how unlikely each is under the prior, and where.

Reads `vqvae.pt` and a prior, such as `transformer.pt`, from OUTPUT_DIR or PRETRAINED. Writes `scores.csv`, a row for
each image; `scores.png`, the most and the least likely images, over the surprise of their codes; `score_<i>.png` for
the NUM_IMAGES least likely of a set, i their row in the table; and with AGAINST `auroc.csv`, the AUROC of each score
for telling the sets apart.

The surprise of a code is -log2 p(code | codes before it), in bits. With 1 to 16 learnt classes p(codes) is the mean
over the classes, weighted by their share in the training; otherwise it is the prior's own without a class.
The columns of the table:
    bits             of the image: the sum over its codes, -log2 p(codes)
    bits_per_pixel   the same over height times width of the original
    rank             share of the validation images that take fewer bits; 1: none takes as many
    ratio_bits       bits less those of independent codes as frequent as in the validation images: the log-likelihood
                     ratio of [3]. Simple images can take few bits although they are unlike those learnt [2]
    window_bits      the highest mean surprise of a window of WINDOW x WINDOW codes
    unlikely_bits    the sum over the codes above the threshold alone ([1], the score of a sample)
    unlikely_codes   how many they are
    mse              error of the reconstruction, of pixels in [0, 1]
    row, column      the middle of the code of the highest surprise, in pixels from the top left corner
    turned_bits      with TURNS: bits less the fewest of the image turned by quarters, or by half if it is not square;
                     above 0: turned, the image is likelier
In raster order the highest surprise is that of the first code that does not fit the codes before it: an anomaly may lie
below that code or to its right.

The threshold is the quantile THRESHOLD of the surprise of all codes of the validation split, which is loaded unless the
weights are of share.py, which keeps what is needed of it. A restoration is the image decoded from the codes with those
above the threshold drawn again, given the likeliest class, and the others kept [1]. A masked prior draws them if the
run has one, as it sees all codes that are kept.

Papers, cited by number:
[1] Marimont, Tarroni: Anomaly Detection through Latent Space Restoration using Vector-Quantized Variational
    Autoencoders, 2020, arXiv:2012.06765
[2] Nalisnick et al., Do Deep Generative Models Know What They Don't Know?, 2018, arXiv:1810.09136
[3] Ren et al., Likelihood Ratios for Out-of-Distribution Detection, 2019, arXiv:1906.02845
"""
import running.start  # noqa: F401

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from judging import expected, testset
from judging.expected import Coded, Expected, Networks, code
from judging.metrics import auroc, ranks
from judging.testset import Found
from modules import VQVAE
from priors import runs
from priors.draws import Draw
from priors.sampler import draw_grids
from running import devices, figures, files
from running.cli import UserError
from running.cli import run as run_script
from running.progress import Bar
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as transformer.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
PRIOR = None              # the prior to score by; None: the one there, or of several that of best validation loss
DATASET = None            # a data set, a folder or one image file; None: the data set of the training, its test split
AGAINST = ""              # a second set, to be told from the first: a data set, a folder or a file; empty: none
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # score the first N images of a set; 0: all; None: as in the training
IMAGE_SIZE = None         # of a folder's images; None: the training's, of a file too; 64: brought to that
CHANNELS = "auto"         # "auto": the training's of a file; of a folder 1 if all are grey, or else 3; 1: grey; 3: RGB
TURNS = False             # also turned_bits, which finds images that are turned; takes 4 times as long
WINDOW = 3                # codes a side of the window of window_bits
THRESHOLD = 0.95          # codes are unlikely above this quantile of the surprise of the validation split's codes
CROP = ""                 # of an image file: left, top and size in pixels of the square to take, such as "40 10 120"
INVERT = False            # of an image file: light becomes dark, where the training's images are light on dark
NUM_IMAGES = 8            # images of a set with a picture of their own, the least likely
TEMPERATURE = 1.0         # of restorations: divides the logits; 0: always the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = 0.9               # draw among the fewest codes whose probabilities reach p together; 1: the model as it is
SEED = 0                  # of the draws of restorations
BATCH_SIZE = 64           # images at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"

# the scores of an image, larger for what the prior does not expect: how well each tells two sets apart is reported
SCORES = ("bits", "ratio_bits", "turned_bits", "window_bits", "unlikely_bits", "mse")



def window_bits(surprises: Tensor, window: int) -> Tensor:
    """The highest mean surprise of any window of window x window codes, or as large as the grid if that is smaller:
    surprises (N, H, W) to (N,).
    """
    sides = [min(window, side) for side in surprises.shape[1:]]
    return F.avg_pool2d(surprises[:, None], sides, 1).amax((1, 2, 3))


def score(coded: Coded, usual: Expected, size: tuple[int, int], window: int, side: int) -> dict[str, Tensor]:
    """The columns of the table for N images of size (H, W), each (N,). side: pixels along a side of a code."""
    height, width = size
    bits = coded.surprise.sum((1, 2))
    unlikely = coded.surprise > usual.threshold
    most, columns = coded.surprise.flatten(1).argmax(1), coded.surprise.shape[2]
    return {"bits": bits, "bits_per_pixel": bits / (height * width), "rank": ranks(bits, usual.bits),
            "ratio_bits": bits - usual.code_bits[coded.codes].sum((1, 2)),
            "window_bits": window_bits(coded.surprise, window),
            "unlikely_bits": (coded.surprise * unlikely).sum((1, 2)), "unlikely_codes": unlikely.sum((1, 2)),
            "mse": coded.mse,
            "row": (side * (most // columns) + side // 2).clamp_max(height - 1),
            "column": (side * (most % columns) + side // 2).clamp_max(width - 1)}


def turned_bits(networks: Networks, images: Tensor, bits: Tensor) -> Tensor:
    """Bits (N,) of images (N, C, H, W) less the fewest that any turn takes: by quarters, or by half if not square."""
    turns = (1, 2, 3) if images.shape[2] == images.shape[3] else (2,)
    turned = [code(networks, images, f"scoring images turned by {90 * turn} degrees", turn) for turn in turns]
    return bits - torch.stack([part.surprise.sum((1, 2)) for part in turned]).amin(0)


def find_restorer(weights: str, stored: dict, networks: Networks) -> nn.Module:
    """The prior that draws the codes of restorations: a masked one if the directory has one that can draw as the scores
    were made, with a class or without; else the prior of the scores. stored: the VQ-VAE's checkpoint.
    """
    if not checkpoint.path_of(weights, "masked").exists():
        return networks.prior
    found, masked = runs.load_prior(weights, stored, "masked")
    if found["data"]["class_names"] and networks.classes is None and runs.class_dropout(found) == 0:
        return networks.prior
    return masked.to(networks.device)


def restore(prior: nn.Module, codes: Tensor, labels: Tensor, unlikely: Tensor, seed: int, batch_size: int,
            how: Draw) -> Tensor:
    """Codes (N, H, W) with those where `unlikely` (N, H, W) drawn again from a prior, given the others that it sees and
    the classes in labels (N,), `num_classes` for none.
    """
    parts = math.ceil(len(codes) / batch_size)
    with Bar(desc="restoring", total=parts * codes.shape[1], unit="row") as bar:
        return torch.cat(list(draw_grids(prior, labels, codes.shape[1:], seed, batch_size, how,
                                         known=codes.masked_fill(unlikely, -1), on_row=bar.update)))


def find(args: argparse.Namespace, name: str, stored: dict) -> Found:
    """The images of the constant DATASET or AGAINST. UserError if the prior cannot score them."""
    whole = argparse.Namespace(**vars(args) | {"DATASET": getattr(args, name), "LIMIT": 0})
    try:
        found = testset.find(whole, stored, args.CHANNELS, any_size=False)
    except UserError as error:
        raise UserError(str(error).replace("DATASET (--dataset)", f"{name} (--{name.lower()})")) from None
    return found._replace(images=found.images[:args.LIMIT or None])


def make_rows(name: str, found: Found, scores: dict[str, Tensor], first: int) -> list[dict]:
    """The rows of the table for a set of images, called `name`, of which the first is in row `first`."""
    columns = {key: column.tolist() for key, column in scores.items()}
    return [{"image": first + i, "set": name, "path": found.files[i] if found.files else "",
             **{key: f"{column[i]:.6g}" for key, column in columns.items()}} for i in range(len(found.images))]


def draw_pictures(args: argparse.Namespace, vqvae: VQVAE, restorer: nn.Module, images: Tensor, coded: Coded,
                  threshold: float, first: int) -> None:
    """Write score_<i>.png of the least likely images of a set, i their row in the table, in which the set begins at
    `first`. restorer: the prior that draws the codes of restorations, given the likeliest class of each.
    """
    chosen = coded.surprise.sum((1, 2)).argsort(descending=True)[:args.NUM_IMAGES]
    images, surprises = images[chosen], coded.surprise[chosen]
    codes = coded.codes[chosen].to(next(vqvae.parameters()).device)
    restored = restore(restorer, codes, coded.labels[chosen], (surprises > threshold).to(codes.device), args.SEED,
                       args.BATCH_SIZE, Draw(args.TEMPERATURE, args.TOP_K, args.TOP_P))
    for i, number in enumerate(chosen.tolist()):
        copy, restoration = (vqvae.decode(grids[i:i + 1], *images.shape[2:])[0].cpu() for grids in (codes, restored))
        figures.save_score(dataset.to_float(images[i]), copy, restoration, surprises[i], threshold,
                           vqvae.config.downsample, Path(args.OUTPUT_DIR) / f"score_{first + number}.png")


def save_extremes(sets: dict[str, Found], coded: dict[str, Coded], side: int, threshold: float, path: Path) -> None:
    """Plot the most and the least likely images of each set, over the surprise of their codes."""
    strips, count = {}, min(figures.HEAT_IMAGES, max(len(found.images) for found in sets.values()))
    for name, part in coded.items():
        bits = part.surprise.sum((1, 2))
        order = bits.argsort()
        ends = {"the most likely": order[:count], "the least likely": order[-count:]} if len(order) > count \
            else {"all": order}
        for end, chosen in ends.items():
            images = dataset.to_float(sets[name].images[chosen])
            heat = figures.heat(images, part.surprise[chosen], side, threshold)
            empty = heat.new_ones(count - len(chosen), *heat.shape[1:])
            strips[f"{name}, {end}:\n{bits[chosen[0]]:.1f} to {bits[chosen[-1]]:.1f} bits"] = torch.cat(
                [images.expand_as(heat), empty])
            strips[f"surprise of their codes\n({name}, {end})"] = torch.cat([heat, empty])
    figures.save_strips(strips, "Images, from few bits to many, and the surprise of their codes: 0 dark, twice the "
                                f"threshold of {threshold:.1f} bits and above bright", path)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    args, stored, vqvae = runs.open_run(args, device)
    weights, output = checkpoint.weights_dir(args), Path(args.OUTPUT_DIR)
    prior, model = runs.load_prior(weights, stored, args.PRIOR)
    if lacks := expected.lacks_for_scores(prior):
        again = checkpoint.command(weights, "transformer") if prior["stage"] == "masked" else \
            checkpoint.command(weights, prior["stage"], "--resume", "never", "--overwrite")
        raise UserError(f"{lacks}: train one that can with {again}")
    networks = Networks(vqvae, model.to(device), expected.class_shares(prior), device, args.BATCH_SIZE)
    restorer = find_restorer(weights, stored, networks)
    sets = {name: find(args, name, stored) for name in ("DATASET", "AGAINST") if getattr(args, name)}
    if expected.is_kept(prior):
        usual = expected.recall(prior, args.THRESHOLD)
    else:
        usual = code(networks, expected.validation_images(args, stored), "scoring validation images")
        usual = expected.expect(usual, vqvae.config.num_codes, args.THRESHOLD)
    side, size = vqvae.config.downsample, (stored["data"]["height"], stored["data"]["width"])
    coded = {name: code(networks, found.images, f"scoring {name}") for name, found in sets.items()}
    scores = {name: score(part, usual, size, args.WINDOW, side) for name, part in coded.items()}
    for name, found in sets.items() if args.TURNS else ():
        scores[name]["turned_bits"] = turned_bits(networks, found.images, scores[name]["bits"])
    files.remove(output, "score_*.png")  # of an earlier call
    files.remove(output, "auroc.csv")
    rows = []
    for name, found in sets.items():
        draw_pictures(args, vqvae, restorer, found.images, coded[name], usual.threshold, len(rows))
        rows += make_rows(name, found, scores[name], len(rows))
        bits, rank, mse = (scores[name][key].double().mean().item() for key in ("bits", "rank", "mse"))
        count = len(found.images)
        print(f"{getattr(args, name)}, {count} image{'s' * (count > 1)}: {bits:.1f} bits on average, more than "
              f"{rank:.0%} of the validation images take; MSE {mse:.5f}")
        if args.TURNS:
            print(f"{(scores[name]['turned_bits'] > 0).sum()} of them are likelier turned than as they are")
    files.write_csv(output / "scores.csv", rows)
    save_extremes(sets, coded, side, usual.threshold, output / "scores.png")
    print(f"unlikely codes: above {usual.threshold:.2f} bits, quantile {args.THRESHOLD:g} of the validation split's")
    wrote = f"{output / 'scores.csv'}, {output / 'scores.png'}"
    if "AGAINST" in sets:
        table = [{"score": name, "auroc": f"{auroc(scores['AGAINST'][name], scores['DATASET'][name]):.4f}"}
                 for name in SCORES if name in scores["DATASET"]]
        files.write_csv(output / "auroc.csv", table)
        wrote += f", {output / 'auroc.csv'}"
        print(f"AUROC of telling {args.AGAINST} from {args.DATASET}:")
        print("\n".join(f"    {row['score']:<15}{row['auroc']}" for row in table))
    if not all(found.of_split for found in sets.values()):
        print("few bits do not make an image one of the training's kind, as simple images take few: its MSE, "
              "turned_bits (--turns) and score_<i>.png tell more")
    print(f"wrote {wrote}, and score_<i>.png of the least likely, i: their row in the table")


if __name__ == "__main__":
    run_script(main, globals())
