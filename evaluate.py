"""Measure a run, each of its models and the baselines: one table, one figure.

Reads `vqvae.pt` and what else lies in OUTPUT_DIR of `pixelcnn.pt`, `pixelsnail.pt`, `transformer.pt` and `vae.pt`;
writes `evaluation.json`, the table; `evaluation.png`, a strip of images of every row; `nearest.png`, samples over
their nearest training images; and `classifier.pt`, trained once for a run's images.

The columns of the table:
    bits/image   of the test split's codes under the prior, given the class where it learnt classes; of a VAE, the
                 divergence of its posterior from its prior
    MSE, PSNR    over the whole test split, of pixels clipped to [0, 1]; PSNR is that of the mean MSE
    SSIM         as reconstruct.py measures it, mean over the first 1,000 test images
    Frechet      distance to the test images, in the features of a small classifier: comparable within a data set
    precision    share of the samples that lie among the test images, in the same features
    recall       share of the test images that lie among the samples
    class        share of the samples that the classifier takes for the class asked for
    nearest      mean distance of the first 1,000 to the nearest training image: memorised samples would lie far nearer
                 than reconstructions of test images
In the row of the real images one half of the test images is held against the other: the floor, and a high one, as the
Frechet distance of half as many images lies about twice as far from 0. Reconstructions are of the very images that
they are held against, so no precision or recall but near 1 is good there.
"""
import argparse
import math
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

import checkpoint
import devices
import figures
from cli import UserError
from cli import run as run_script
from codes import bits_per_image, draw_independent, nll_sums, perplexity, psnr
from metrics import SSIM_IMAGES, Images, Row, Yardstick
from reconstruct import similarity
from vae import VAE, kl

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


def errors(yard: Yardstick, copies: Images) -> dict[str, float]:
    """MSE and PSNR of copies of the whole test split, and SSIM of copies of its first images."""
    test, squares, similarities = yard.data.test.images, 0.0, []
    for index in yard.batches(len(test)):
        originals, batch = yard.read(test, index), copies(index)
        squares += (originals - batch).square().flatten(1).mean(1).sum().item()
        pairs = zip(originals.cpu().numpy(), batch.cpu().numpy())
        similarities += [float(similarity(*pair)) for pair in islice(pairs, SSIM_IMAGES - len(similarities))]
    mse = squares / len(test)
    return {"mse": mse, "psnr": psnr(mse), "ssim": sum(similarities) / len(similarities)}


def find_vae(output_dir: str, vqvae: dict) -> VAE | None:
    """The VAE of a run's directory. None if there is none, or with a line that says so, if it is damaged or no baseline
    for the VQ-VAE of the checkpoint: of other images, or of another encoder and decoder.
    """
    if not checkpoint.path_of(output_dir, "vae").exists():
        return None
    try:
        stored = checkpoint.load(output_dir, "vae")
        vae = checkpoint.build(stored)
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


def use_vae(vae: VAE, yard: Yardstick) -> tuple[Images, Images, float]:
    """Of a VAE: the test split, decoded from draws of the posterior; samples; and the rate on the test split, the
    divergence of the posterior from the prior, in bits per image.
    """
    vae, test = vae.to(yard.device), yard.data.test.images
    generator = torch.Generator().manual_seed(yard.args.SEED)
    drawn, nats = [], 0.0
    for index in yard.batches(len(test)):
        mean, log_variance = (part.cpu() for part in vae.encode(yard.read(test, index)))
        drawn.append(mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator))
        nats += kl(mean, log_variance).sum().item()
    posterior = torch.cat(drawn)
    prior = torch.randn(yard.count, posterior.shape[1], generator=generator)

    def decoded(z: Tensor) -> Images:
        return lambda index: vae.decode(z[index].to(yard.device))

    return decoded(posterior), decoded(prior), nats / len(test) / math.log(2)


def collect(yard: Yardstick, args: argparse.Namespace, vae: VAE | None) -> dict[str, Row]:
    """The rows that the run directory allows; vae: its VAE."""
    vae_copies, vae_samples, rate = use_vae(vae, yard) if vae else (None, None, None)
    rows = {"real images": Row(yard.originals, yard.floor)}

    def reconstructed(copies: Images) -> Row:
        def images(index: Tensor) -> Tensor:
            return copies(yard.chosen[index])
        return Row(images, errors(yard, copies) | yard.measure(images, asked=True))

    def sampled(images: Images, bits: float, asked: bool = False) -> Row:
        return Row(images, {"bits_per_image": bits} | yard.measure(images, asked))

    rows["VQ-VAE reconstructions"] = reconstructed(yard.decoded(yard.test_codes))
    if vae:
        rows["VAE reconstructions"] = reconstructed(vae_copies)
    for name, model in yard.priors.items():
        codes, labels = yard.test_codes, yard.data.test.labels
        nats = nll_sums(model, codes, labels, yard.batches(len(codes)))["nll"].item() / len(codes) * codes[0].numel()
        images = yard.decoded(yard.draw(name, args.TEMPERATURE, args.TOP_K, args.TOP_P))
        rows[name] = sampled(images, nats / math.log(2), asked=model.num_classes > 0)
    if vae:
        rows["VAE samples"] = sampled(vae_samples, rate)
    for name, probabilities in yard.independent.items():
        images = yard.decoded(draw_independent(probabilities, yard.count, args.SEED))
        rows[name] = sampled(images, bits_per_image(probabilities, yard.test_codes))
    return rows


def save_nearest(yard: Yardstick, name: str, images: Images, nearest: Tensor, path: Path) -> None:
    """Plot images of a set over the training images of the indices `nearest`."""
    shown = yard.shown()
    strips = {name: images(shown), "nearest training images": yard.read(yard.data.train.images, nearest[shown])}
    figures.save_strips(strips, "Samples over the training images nearest to them (by pixels, L2)", path)


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    yard = Yardstick(args, device, every=True)
    rows = collect(yard, args, find_vae(args.OUTPUT_DIR, yard.stored))
    nearest = {name: yard.nearest(row.images) for name, row in rows.items()}
    for name, (distances, _) in nearest.items():
        rows[name].measures["nearest"] = distances.mean().item()
    counts = torch.bincount(yard.test_codes.flatten().long(), minlength=yard.vqvae.config.num_codes)
    codebook = {"codes": len(counts), "codes_used": int((counts > 0).sum()), "perplexity": perplexity(counts)}
    yard.report(rows, "evaluation", "Real images, their reconstructions, and samples of every model", **codebook,
                ssim_images=min(SSIM_IMAGES, len(yard.data.test.images)))
    bits = {name: rows[name].measures["bits_per_image"] for name in (*yard.priors, *yard.independent)}
    best = min(bits, key=bits.get)
    path = Path(args.OUTPUT_DIR) / "nearest.png"
    save_nearest(yard, f"samples of {best}", rows[best].images, nearest[best][1], path)
    print("codebook: {codes_used} of {codes} codes in use on the test split, perplexity {perplexity:.1f}".format_map(
        codebook))
    print(f"fewest bits per image: {best}, {1 - bits[best] / bits['per-position marginal']:.0%} below the per-position "
          f"marginal")
    print("nearest training image, on average: {:.2f} away from samples of {}, {:.2f} from test images, {:.2f} from "
          "their reconstructions; wrote {}".format(
              rows[best].measures["nearest"], best, rows["real images"].measures["nearest"],
              rows["VQ-VAE reconstructions"].measures["nearest"], path))


if __name__ == "__main__":
    run_script(main, globals())
