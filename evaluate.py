"""Measure a run, each of its models and the baselines: one table, one figure.

Reads `vqvae.pt` and what else lies in OUTPUT_DIR of `pixelcnn.pt`, `pixelsnail.pt`, `transformer.pt` and `vae.pt`;
writes `evaluation.json`, the table; `evaluation.png`, a strip of images of every row; `nearest.png`, samples over
their nearest training images; and `classifier.pt`, trained once for a run's images.

The columns of the table:
    bits/image   of the test split's codes under the prior; of a VAE, the divergence of its posterior from its prior
    MSE, PSNR    over the whole test split, of pixels in [0, 1]; PSNR is that of the mean MSE
    SSIM         as reconstruct.py measures it, mean over the first test images
    Frechet      distance to the test images, in the features of a small classifier: comparable within a data set
    precision    share of the samples that lie among the test images, in the same features
    recall       share of the test images that lie among the samples
    class        share of the samples that the classifier takes for the class asked for
    nearest      mean distance to the nearest training image: memorised samples would lie far nearer than test images
In the row of the real images, one half of the test split is held against the other.
"""
import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import devices
import figures
import metrics
from cli import run as run_script
from metrics import Images, Row, Yardstick
from modules import perplexity
from priors import PRIORS
from reconstruct import similarity
from train_pixelcnn import evaluate as evaluate_prior

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and any priors and vae.pt
DATASET = None            # the images to measure with; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # use only the first N images of the training and of the test part; 0: all
NUM_SAMPLES = 10_000      # images in every row, but no more than the test split has
TEMPERATURE = 1.0         # divides the priors' logits: below 1 plays safe, above 1 is bolder; 0: the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = 0.9               # draw among the fewest codes whose probabilities reach p together; 1: the model as it is
CLASSIFIER_EPOCHS = 3     # passes over the training images of the classifier behind the table
INCEPTION = False         # also FID and Inception score, through torchmetrics, which downloads a network's weights
SEED = 0                  # of the draws, and of the choice of test images where NUM_SAMPLES are fewer
BATCH_SIZE = 250          # images and grids at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


def distortion(yard: Yardstick, copies: Images) -> dict[str, float]:
    """MSE and PSNR of copies of the whole test split, and SSIM of copies of its first images."""
    test, squares, similarities = yard.data.test.images, 0.0, []
    for index in yard.batches(len(test)):
        originals, batch = yard.read(test, index), copies(index)
        squares += (originals - batch).square().flatten(1).mean(1).sum().item()
        pairs = zip(originals.cpu().numpy(), batch.cpu().numpy())
        similarities += [float(similarity(*pair)) for pair, _ in zip(pairs, range(metrics.SSIM_IMAGES - len(similarities)))]
    mse = squares / len(test)
    return {"mse": mse, "psnr": -10 * math.log10(max(mse, 1e-12)), "ssim": sum(similarities) / len(similarities)}


def load_vae(yard: Yardstick) -> tuple[Images, Images, float]:
    """Of the run's VAE: the test split, decoded from draws of its posterior; samples; and its rate on the test split,
    the divergence of the posterior from the prior, in bits per image.
    """
    stored = checkpoint.load(yard.args.OUTPUT_DIR, "vae")
    vae = checkpoint.build(stored).to(yard.device)
    test = yard.data.test.images
    checkpoint.check_images(stored, test)
    generator = torch.Generator().manual_seed(yard.args.SEED)
    drawn, nats = [], 0.0
    for index in yard.batches(len(test)):
        mean, log_variance = (part.cpu() for part in vae.encode(yard.read(test, index)))
        drawn.append(mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator))
        nats += 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum().item()
    posterior = torch.cat(drawn)
    prior = torch.randn(yard.count, posterior.shape[1], generator=generator)

    def decoded(z: Tensor) -> Images:
        return lambda index: vae.decode(z[index].to(yard.device))

    return decoded(posterior), decoded(prior), nats / len(test) / math.log(2)


def collect(yard: Yardstick, args: argparse.Namespace) -> dict[str, Row]:
    """The rows that the run directory allows."""
    test, grid = yard.data.test, yard.test_codes.shape[1:]
    names = [name for name in PRIORS if checkpoint.path_of(args.OUTPUT_DIR, name).exists()]
    priors = dict(yard.prior(name) for name in names)  # before the long work: one may not fit
    vae = load_vae(yard) if checkpoint.path_of(args.OUTPUT_DIR, "vae").exists() else None
    rows = {"real images": Row(yard.originals, yard.floor)}

    def reconstructed(copies: Images) -> Row:
        images = lambda index: copies(yard.chosen[index])
        return Row(images, distortion(yard, copies) | yard.measure(images, asked=True))

    rows["VQ-VAE reconstructions"] = reconstructed(yard.decoded(yard.test_codes))
    for name, model in priors.items():
        bits = evaluate_prior(model, yard.test_codes, test.labels, args.BATCH_SIZE)["bits_per_image"]
        codes = yard.draw(model, name, args.TEMPERATURE, args.TOP_K, args.TOP_P)
        images = yard.decoded(codes)
        rows[name] = Row(images, {"bits_per_image": bits} | yard.measure(images, asked=model.num_classes > 0))
    for name, probabilities in yard.independent.items():
        images = yard.decoded(metrics.draw_independent(probabilities, yard.count, args.SEED))
        bits = metrics.bits_per_image(probabilities, yard.test_codes)
        rows[name] = Row(images, {"bits_per_image": bits} | yard.measure(images))
    if vae:
        copies, samples, bits = vae
        rows["VAE reconstructions"] = reconstructed(copies)
        rows["VAE samples"] = Row(samples, {"bits_per_image": bits} | yard.measure(samples))
    return rows


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    yard = Yardstick(args, device)
    rows = collect(yard, args)
    nearest = {name: yard.nearest(row.images) for name, row in rows.items()}
    for name, row in rows.items():
        row.figures["nearest"] = nearest[name][0].mean().item()
    counts = torch.bincount(yard.test_codes.flatten().long(), minlength=yard.vqvae.config["num_codes"])
    used, even = int((counts > 0).sum()), perplexity(counts)
    best = min((name for name in rows if name in (*PRIORS, *yard.independent)),
               key=lambda name: rows[name].figures["bits_per_image"])
    print(f"codebook: {used} of {len(counts)} codes in use on the test split, perplexity {even:.1f}")
    yard.report(rows, "evaluation", "Images of every row", codes_used=used / len(counts), perplexity=even,
                ssim_images=min(metrics.SSIM_IMAGES, len(yard.data.test.images)))
    saved = 1 - rows[best].figures["bits_per_image"] / rows["per-position marginal"].figures["bits_per_image"]
    print(f"fewest bits per image: {best}, {saved:.0%} below the per-position marginal")
    shown = yard.shown()
    where = nearest[best][1][shown]
    pairs = {f"samples of {best}": rows[best].images(shown),
             "nearest training images": yard.read(yard.data.train.images, where)}
    path = Path(args.OUTPUT_DIR) / "nearest.png"
    figures.save_strips(pairs, "Samples over their nearest training images (by pixels, L2)", path)
    print(f"nearest training image: {rows[best].figures['nearest']:.2f} from samples of {best}, "
          f"{rows['real images'].figures['nearest']:.2f} from test images, which nobody can have memorised: {path}")


if __name__ == "__main__":
    run_script(main, globals())
