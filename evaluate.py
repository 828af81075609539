"""Measure a run, each of its models and the baselines: one table, one figure.

Reads `vqvae.pt` and whichever of `decoder.pt`, `transformer.pt`, `pixelcnn.pt`, `masked.pt` and `vae.pt` OUTPUT_DIR, or
PRETRAINED, holds. Writes `evaluation.json`, the table; `evaluation.png`, a strip of images of every row; of the prior
of the fewest bits `nearest.png`, samples over their nearest training images, and `samples_by_class.png`;
`codebook.png`, how often every code occurs; `report.html`, a page of all that the run's directory holds; and, where
there are classes, `classifier.pt`, kept for the same images and CLASSIFIER_EPOCHS.

The columns of the table are explained in `report.html`, from COLUMNS in judging/report.py. Distances, precision and
recall are comparable within a data set, a size of images and the same FEATURES. The row of the real images is the
baseline: one half of the test set against the other. The rows of reconstructions are compared with their own originals,
so that only precision and recall near 1 are good.
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

from judging.judge import SSIM_IMAGES, Judge, Subject, errors, load_judge, load_subject, nearest_training_images
from judging.metrics import Images, Inception
from judging.page import write_page
from judging.report import Row, make_rows, write_report
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
NUM_SAMPLES = 2000        # images in every row; at most as many as the test split has
TEMPERATURE = 1.0         # divides the priors' logits: below 1 plays safe, above 1 is bolder; 0: the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = "auto"            # draw among the fewest codes that reach probability p; "auto": 0.95, but 1 with guidance
GUIDANCE = "auto"         # above 1: clearer classes, less variety, twice the time; 1: none; "auto": 1.25 with a class
STEPS = 16                # rounds in which a masked prior draws a grid; 0: one for each code, as other priors draw
FEATURES = "auto"         # of a network that learnt "imagenet", or the "classes"; "auto": imagenet if installed
CLASSIFIER_EPOCHS = "auto"  # of the classifier that learns the classes; "auto": 3, or more for 440 steps of 128
INCEPTION = False         # also FID and Inception score, through torchmetrics, which downloads a network's weights
SEED = 0                  # of the draws, and of the choice of test images where NUM_SAMPLES are fewer
BATCH_SIZE = 250          # images and grids at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def find_vae(weights: str, vqvae: dict) -> VAE | None:
    """The VAE of a run's directory, or None. A line says so if there is one that cannot be used: it is damaged, or it
    learnt other images or has another encoder and decoder than the VQ-VAE, whose checkpoint is `vqvae`.
    """
    if not checkpoint.path_of(weights, "vae").exists():
        return None
    try:
        stored = checkpoint.load(weights, "vae")
        vae = checkpoint.build(stored, VAE, VAEConfig)
        sizes = asdict(vae.config)
        same = {name: value for name, value in (vqvae["config"] | vqvae["data"]).items() if name in sizes}
        if stored.get("images") != vqvae.get("images") or not same.items() <= sizes.items():
            again = checkpoint.command(weights, "vae", "--resume", "never", "--overwrite")
            raise UserError(f"vae.pt learnt other images than vqvae.pt, or has other sizes: train it again by {again}")
        return vae
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
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


def measure_prior(subject: Subject, name: str) -> dict[str, float]:
    """The bits of the test split's codes under a prior, by the name of their column."""
    model, codes, labels = subject.priors[name], subject.test_codes, subject.data.test.labels
    spans = subject.spans(len(labels))
    if name == "masked":
        found = masked.summarise(hidden_sums(model, codes, labels, spans))
        return {"bits_per_hidden_code": found["bits_per_hidden_code"]}
    nats = nll_sums(model, codes, labels, spans)["nll"].item() / len(codes) * codes[0].numel()
    return {"bits_per_image": nats / math.log(2)}


def plan(subject: Subject, judge: Judge, vae: VAE | None) -> dict[str, Callable[[], Row]]:
    """How to make the rows that the run's directory allows, in the order of the table; vae: its VAE."""
    args = subject.args
    vae_copies, vae_samples, rate = use_vae(vae, subject) if vae else (None, None, None)

    def reconstructed(copies: Images) -> Row:
        def images(index: Tensor) -> Tensor:
            return copies(subject.chosen[index])
        return Row(images, errors(subject, copies) | judge.measure(images, asked=True))

    def sampled(images: Images, bits: dict[str, float], asked: bool = False) -> Row:
        return Row(images, bits | judge.measure(images, asked))

    def drawn(name: str) -> Row:
        how = Draw(args.TEMPERATURE, args.TOP_K, args.TOP_P, args.GUIDANCE, args.STEPS)
        images = subject.decoded(subject.draw(name, how))
        return sampled(images, measure_prior(subject, name), asked=subject.priors[name].num_classes > 0)

    def independent(probabilities: Tensor) -> Row:
        images = subject.decoded(draw_independent(probabilities, subject.count, args.SEED))
        return sampled(images, {"bits_per_image": bits_per_image(probabilities, subject.test_codes)})

    return {"real images": lambda: Row(subject.originals, judge.baseline),
            "VQ-VAE reconstructions": lambda: reconstructed(subject.decoded(subject.test_codes)),
            **({"VAE reconstructions": lambda: reconstructed(vae_copies)} if vae else {}),
            **{name: partial(drawn, name) for name in subject.priors},
            **({"VAE samples": lambda: sampled(vae_samples, {"bits_per_image": rate})} if vae else {}),
            **{name: partial(independent, probabilities) for name, probabilities in subject.independent.items()}}


def save_classes(subject: Subject, images: Images, path: Path) -> None:
    """Plot images of a set of samples under the class that each was asked for, as many of each as of a data set."""
    names = subject.data.class_names
    rows = {"": torch.arange(min(subject.count, summary.UNLABELLED))} if not names else {
        f"{number} {name}": (subject.labels == number).nonzero()[:summary.per_class(len(names)), 0]
        for number, name in enumerate(names)}
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
    rows = make_rows(plan(subject, judge, find_vae(checkpoint.weights_dir(args), subject.stored)))
    compared = {name: torch.cat([row.images(index) for index in subject.spans(subject.compared)])
                for name, row in rows.items()}
    nearest = nearest_training_images(compared, subject.data.train.images, subject.args.BATCH_SIZE)
    for name, (distances, _) in nearest.items():
        rows[name].measures["nearest"] = distances.mean().item()
    bits = {name: rows[name].measures["bits_per_image"] for name in (*subject.priors, *subject.independent)
            if name != "masked"}
    best = min(bits, key=bits.get)
    drawn = "masked" if list(subject.priors) == ["masked"] else best  # whose samples the pictures show
    numbers = {name: runs.choose_guidance(args.GUIDANCE, args.TOP_P, prior)
               for name, prior in subject.checkpoints.items()}
    counts = torch.bincount(subject.test_codes.flatten().long(), minlength=subject.vqvae.config.num_codes)
    use = {"codes": len(counts), "codes_used": int((counts > 0).sum()), "perplexity": perplexity(counts)}
    write_report(rows, subject.shown, subject.args, "evaluation",
                 "Real images, their reconstructions, and samples of every model", subject.independent,
                 images_per_row=subject.count,
                 sampling=", ".join(f"{name} with GUIDANCE {s:g} and TOP_P {p:g}" for name, (s, p) in numbers.items()),
                 best=drawn, classifier_accuracy=judge.accuracy, **use,
                 ssim_images=min(SSIM_IMAGES, len(subject.data.test.images)))
    output, shown = Path(args.OUTPUT_DIR), subject.shown
    copied = subject.read(subject.data.train.images, nearest[drawn].indices[shown])
    figures.save_strips({f"samples of {drawn}": rows[drawn].images(shown), "nearest training images": copied},
                        "Samples over the training images nearest to them (by pixels, L2)", output / "nearest.png")
    save_classes(subject, rows[drawn].images, output / "samples_by_class.png")
    figures.save_shares(counts, output / "codebook.png")
    print("codebook: {codes_used} of {codes} codes in use on the test split, perplexity {perplexity:.1f}".format(**use))
    print(f"fewest bits per image: {best}; nearest training images, on average {nearest[drawn].distances.mean():.2f} "
          f"away from samples of {drawn}: {output / 'nearest.png'}")
    print(f"wrote {write_page(args.OUTPUT_DIR, args.PRETRAINED)}: all of this on one page")


if __name__ == "__main__":
    run_script(main, globals())
