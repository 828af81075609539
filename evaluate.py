"""Measure a run, each of its models and the baselines: one table, one figure.

Reads `vqvae.pt` and whichever of `transformer.pt`, `pixelcnn.pt`, `masked.pt` and `vae.pt` OUTPUT_DIR, or PRETRAINED,
holds.
Writes `evaluation.json`, the table; `evaluation.png`, a strip of images of every row; of the prior of the fewest bits
`nearest.png`, samples over their nearest training images, and `samples_by_class.png`; `codebook.png`, how often every
code occurs; `report.html`, a page of all that the run's directory holds; and `classifier.pt`, kept for the same images
and FEATURES.

The columns of the table:
    bits/image   of the test split's codes under the prior, given the class where it learnt classes; of a VAE, the
                 divergence of its posterior from its prior
    bits/hidden  in the place of bits/image, of a masked prior, which has no exact likelihood: the mean bits of one
                 hidden code of the test split given the rest, where a mask hides 64% of the codes on average; not to
                 be compared with bits/image
    MSE, PSNR    over the whole test split, of pixels clipped to [0, 1]; PSNR is that of the mean MSE
    SSIM         as reconstruct.py measures it, mean over the first 1,000 test images
    Frechet      distance to the test images, in the features of a small network that was trained on the training
                 images (FEATURES): comparable within a data set and the same FEATURES
    precision    share of the samples that lie on the manifold of the test images, in the same features
    recall       share of the test images that lie on the manifold of the samples
    class        share of the samples that the classifier gives the class that was asked for; not where FEATURES are
                 "self"
    nearest      mean distance of the first 1,000 to the nearest training image; a distance far below that of the
                 reconstructions of test images means memorised samples
The row of the real images is the baseline: one half of the test set against the other. It is pessimistic: the Frechet
distance is biased upwards for fewer images, and for half as many about twice as large. The rows of reconstructions are
compared with their own originals, so that only precision and recall near 1 are good.
"""
import running.start  # noqa: F401

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from judging.judge import (
    NEAREST,
    SSIM_IMAGES,
    Judge,
    Nearest,
    Subject,
    costs,
    errors,
    load_judge,
    load_subject,
    nearest_training_images,
)
from judging.metrics import Images, Inception
from judging.page import write_page
from judging.report import Progress, Row, write_report
from judging.vae import VAE, VAEConfig, kl
from loading import summary
from priors import masked, runs
from priors.codes import bits_per_image, draw_independent, hidden_sums, nll_sums, perplexity
from priors.draws import Draw
from running import devices, figures
from running.cli import UserError
from running.cli import run as run_script
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and any priors and vae.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
DATASET = None            # the images to measure with; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # use only the first N images of each part; 0: all; None: as in the training
NUM_SAMPLES = 10_000      # images in every row; at most as many as the test split has
TEMPERATURE = 1.0         # divides the priors' logits: below 1 plays safe, above 1 is bolder; 0: the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = "auto"            # draw among the fewest codes that reach probability p; "auto": 0.9, but 1 with guidance
GUIDANCE = "auto"         # above 1: clearer classes, less variety, twice the time; 1: none; "auto": 1.25 with a class
STEPS = 16                # rounds in which a masked prior draws a grid; 0: one for each code, as other priors draw
FEATURES = "auto"         # of images: learnt from "classes", or without them: "self"; "auto": from classes if any
CLASSIFIER_EPOCHS = "auto"  # of the classifier that learns the classes; "auto": 3, or more for 440 steps of 128
INCEPTION = False         # also FID and Inception score, through torchmetrics, which downloads a network's weights
SEED = 0                  # of the draws, and of the choice of test images where NUM_SAMPLES are fewer
BATCH_SIZE = 250          # images and grids at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def find_vae(output_dir: str, vqvae: dict) -> VAE | None:
    """The VAE of a run's directory, or None. A line says so if there is one that cannot be used: it is damaged, or it
    learnt other images or has another encoder and decoder than the VQ-VAE, whose checkpoint is `vqvae`.
    """
    if not checkpoint.path_of(output_dir, "vae").exists():
        return None
    try:
        stored = checkpoint.load(output_dir, "vae")
        vae = checkpoint.build(stored, VAE, VAEConfig)
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    sizes = asdict(vae.config)
    same = {name: value for name, value in vqvae["config"].items() if name in sizes} | {
        name: vqvae["data"][name] for name in ("channels", "height", "width")}
    if stored.get("images") == vqvae.get("images") and same.items() <= sizes.items():
        return vae
    again = checkpoint.command(output_dir, "vae", "--resume", "never", "--overwrite")
    print(f"left out: vae.pt learnt other images than vqvae.pt, or has other sizes: train it again with {again}",
          file=sys.stderr)
    return None


def use_vae(vae: VAE, subject: Subject) -> tuple[Images, Images, float]:
    """What a VAE makes: the test split decoded from draws of the posterior; samples; and the rate on the test split,
    which is the divergence of the posterior from the prior in bits per image.
    """
    vae, test = vae.to(subject.device), subject.data.test.images
    generator = torch.Generator().manual_seed(subject.args.SEED)
    drawn, nats = [], 0.0
    for index in subject.spans(len(test)):
        mean, log_variance = (part.cpu() for part in vae.encode(subject.read(test, index)))
        drawn.append(mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator))
        nats += kl(mean, log_variance).sum().item()
    posterior = torch.cat(drawn)
    prior = torch.randn(subject.count, posterior.shape[1], generator=generator)

    def decoded(z: Tensor) -> Images:
        return lambda index: vae.decode(z[index].to(subject.device))

    return decoded(posterior), decoded(prior), nats / len(test) / math.log(2)


def plan(subject: Subject, judge: Judge, vae: VAE | None) -> dict[str, Callable[[], Row]]:
    """How to make the rows that the run's directory allows, in the order of the table; vae: its VAE."""
    args = subject.args
    vae_copies, vae_samples, rate = use_vae(vae, subject) if vae else (None, None, None)

    def reconstructed(copies: Images) -> Row:
        def images(index: Tensor) -> Tensor:
            return copies(subject.chosen[index])
        return Row(images, errors(subject, copies) | judge.measure(images, asked=True))

    def sampled(images: Images, bits: float, asked: bool = False, column: str = "bits_per_image") -> Row:
        return Row(images, {column: bits} | judge.measure(images, asked))

    def drawn(name: str) -> Row:
        models, labels, nats, given = subject.priors[name], subject.data.test.labels, 0.0, []
        drawn = subject.draw(name, Draw(args.TEMPERATURE, args.TOP_K, args.TOP_P, args.GUIDANCE, args.STEPS))
        images, asked, spans = subject.decoded(drawn), models[-1].num_classes > 0, subject.spans(len(labels))
        if name == "masked":
            column, sums = "bits_per_hidden_code", hidden_sums(models[0], subject.test_codes[0], labels, spans)
            return sampled(images, masked.summarise(sums)[column], asked, column)
        for model, codes in zip(models, subject.test_codes):
            nats += nll_sums(model, codes, labels, spans, *given)["nll"].item() / len(codes) * codes[0].numel()
            given = [codes]
        return sampled(images, nats / math.log(2), asked)

    def independent(name: str) -> Row:
        probabilities = subject.independent[name]
        images = subject.decoded(draw_independent(probabilities, subject.count, args.SEED))
        return sampled(images, bits_per_image(probabilities, subject.test_codes))

    return {"real images": lambda: Row(subject.originals, judge.baseline),
            "VQ-VAE reconstructions": lambda: reconstructed(subject.decoded(subject.test_codes)),
            **({"VAE reconstructions": lambda: reconstructed(vae_copies)} if vae else {}),
            **{name: partial(drawn, name) for name in subject.priors},
            **({"VAE samples": lambda: sampled(vae_samples, rate)} if vae else {}),
            **{name: partial(independent, name) for name in subject.independent}}


def find_nearest(subject: Subject, rows: dict[str, Row]) -> dict[str, Nearest]:
    """The training images nearest to the first images of every row, by one pass over them."""
    compared = {name: torch.cat([row.images(index) for index in subject.spans(subject.compared)])
                for name, row in rows.items()}
    return nearest_training_images(compared, subject.data.train.images, subject.args.BATCH_SIZE)


def save_nearest(subject: Subject, name: str, images: Images, nearest: Tensor, path: Path) -> None:
    """Plot images of a set over the training images of the indices `nearest`."""
    shown = subject.shown
    strips = {name: images(shown), "nearest training images": subject.read(subject.data.train.images, nearest[shown])}
    figures.save_strips(strips, "Samples over the training images nearest to them (by pixels, L2)", path)


def save_classes(subject: Subject, images: Images, path: Path) -> None:
    """Plot images of a set of samples under the class that each was asked for, as many of each as of a data set."""
    names = subject.data.class_names
    if names:
        each = summary.per_class(len(names))
        rows = {f"{number} {name}": (subject.labels == number).nonzero()[:each, 0] for number, name in enumerate(names)}
    else:
        rows = {"": torch.arange(min(subject.count, summary.UNLABELLED))}
    strips = {title: images(index).clamp(0, 1).mul(255).round().byte() for title, index in rows.items() if len(index)}
    figures.save_labelled({title: (part, torch.arange(len(part))) for title, part in strips.items()}, path,
                          summary.ACROSS, "vqvae-pixelcnn: samples")


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    inception = Inception(device) if args.INCEPTION else None  # first, as it may fail
    subject = load_subject(args, device, every=True, guidance=args.GUIDANCE)
    judge = load_judge(subject, inception)
    parts = plan(subject, judge, find_vae(checkpoint.weights_dir(args), subject.stored))
    with Progress(costs(subject, parts)) as progress:
        rows = progress.rows(parts)
        nearest = progress.run(NEAREST, lambda: find_nearest(subject, rows))
    for name, (distances, _) in nearest.items():
        rows[name].measures["nearest"] = distances.mean().item()
    bits = {name: rows[name].measures["bits_per_image"] for name in (*subject.priors, *subject.independent)
            if name != "masked"}
    best = min(bits, key=bits.get)
    shown = "masked" if list(subject.priors) == ["masked"] else best
    codebook: dict[str, float] = {}
    uses = [torch.bincount(codes.flatten().long(), minlength=subject.vqvae.config.num_codes)
            for codes in reversed(subject.test_codes)]
    for prefix, counts in zip(("", "coarse_"), uses):
        codebook |= {f"{prefix}codes": len(counts), f"{prefix}codes_used": int((counts > 0).sum()),
                     f"{prefix}perplexity": perplexity(counts)}
    numbers = {name: runs.choose_guidance(args.GUIDANCE, args.TOP_P, levels)
               for name, levels in subject.checkpoints.items()}
    sampling = ", ".join(f"{name} with GUIDANCE {s:g} and TOP_P {p:g}" for name, (s, p) in numbers.items())
    write_report(rows, subject.shown, subject.args, "evaluation",
                 "Real images, their reconstructions, and samples of every model", images_per_row=subject.count,
                 sampling=sampling, best=shown, classifier_accuracy=judge.accuracy, **codebook,
                 ssim_images=min(SSIM_IMAGES, len(subject.data.test.images)))
    path = Path(args.OUTPUT_DIR) / "nearest.png"
    save_nearest(subject, f"samples of {shown}", rows[shown].images, nearest[shown].indices, path)
    save_classes(subject, rows[shown].images, path.with_name("samples_by_class.png"))
    figures.save_shares(uses[0], path.with_name("codebook.png"))
    print("codebook: {codes_used} of {codes} codes in use on the test split, perplexity {perplexity:.1f}".format_map(
        codebook))
    if len(subject.test_codes) > 1:
        print("codebook of the coarse level: {coarse_codes_used} of {coarse_codes} codes in use, perplexity "
              "{coarse_perplexity:.1f}".format_map(codebook))
    print(f"fewest bits per image: {best}, {1 - bits[best] / bits['per-position marginal']:.0%} below the per-position "
          f"marginal")
    print("nearest training image, on average: {:.2f} away from samples of {}, {:.2f} from test images, {:.2f} from "
          "their reconstructions; wrote {}".format(
              rows[shown].measures["nearest"], shown, rows["real images"].measures["nearest"],
              rows["VQ-VAE reconstructions"].measures["nearest"], path))
    print(f"wrote {write_page(args.OUTPUT_DIR, args.PRETRAINED)}: all of this on one page")


if __name__ == "__main__":
    run_script(main, globals())
