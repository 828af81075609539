"""Train a VAE with the encoder and decoder of a run's VQ-VAE, on the same images: `vqvae.pt` in, `vae.pt` out.

It is the baseline for the VQ-VAE with its prior: see judging/vae.py. After every epoch OUTPUT_DIR holds a checkpoint to
continue from, the history as a table, its curves, and grids of reconstructions and samples; at the end also
`vae_comparison.png`, reconstructions and samples of both models.
"""
import running.start  # noqa: F401

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from judging.vae import VAE, VAEConfig, distortion, kl
from loading.reading import Reading
from modules import VQVAE
from priors import runs
from priors.codes import psnr, to_images
from priors.samples import draw_images
from running import devices, figures
from running.cli import UserError
from running.cli import run as run_script
from training import checkpoint
from training.loop import Run, attempt, begin, means, over_processes, save_reconstructions, sum_over
from training.optimizers import AdamW
from training.settings import *  # noqa: F403

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # use only the first N images of each part; 0: all; None: as in the training
EPOCHS = 4                # passes over the training images
BATCH_SIZE = 64           # images a step, over all processes together
LEARNING_RATE = 2e-3      # the highest, of Adam; it rises briefly, and at the end falls to 0
SEED = 0                  # of the weights, the order of the images and the draws of the latent
LATENT_DIM = 20           # size of the Gaussian latent z; it sets how many bits z can carry, see judging/vae.py
BETA = 1.0                # weight of the KL term; 1: the bound on the likelihood, above: fewer bits and more error

PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"],
          "rate: KL (bits per image)": ["train_kl_bits", "validation_kl_bits"],
          "loss (nats per image)": ["train_loss", "validation_loss"]}
SIZES = ["channels", "hidden", "residual_blocks", "residual_hidden", "downsample", "code_dim",
         "architecture"]  # taken from vqvae.pt


def terms(model: nn.Module, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What a batch of uint8 images adds to the losses and metrics, with z drawn by the noise (B, latent_dim): MSE over
    pixels in [0, 1], and the rate in nats per image.
    """
    images = dataset.to_float(images)
    output = model(images, noise)
    return {"mse": F.mse_loss(output.images.float(), images), "kl": kl(output.mean, output.log_variance).mean()}


def summarise(totals: dict[str, Tensor], pixels: int, beta: float) -> dict[str, float]:
    """A split's metrics from its sums, all with z drawn: MSE, its PSNR in dB, the rate in bits per image, and the loss
    with the optimal variance for the split: the negative ELBO where beta is 1.
    """
    result = means(totals)
    mse = torch.tensor(result["mse"], dtype=torch.float64)
    return {"mse": result["mse"], "psnr": psnr(result["mse"]), "kl_bits": result["kl"] / math.log(2),
            "loss": distortion(mse, mse, pixels).item() + beta * result["kl"]}


def measure(model: VAE, images: Tensor, batch_size: int, beta: float) -> dict[str, float]:
    """The metrics of uint8 images (N, C, H, W), always with the same draws of z."""
    noise = torch.randn(len(images), model.config.latent_dim, generator=torch.Generator().manual_seed(0))
    return summarise(sum_over(terms, model, batch_size, images, noise), images[0].numel(), beta)


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    stored, vqvae = runs.load_vqvae(args.OUTPUT_DIR)
    args = checkpoint.fill(args, stored)
    lock, data = begin(args, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    train, validation, test = (split.to(device) for split in data[:3])
    height, width = train.images.shape[2:]
    pixels = train.images[0].numel()
    sizes = {name: getattr(vqvae.config, name) for name in SIZES}
    model = VAE(VAEConfig(**sizes, latent_dim=args.LATENT_DIM, height=height, width=width))
    model.to(device, memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters(), args.LEARNING_RATE)
    run = Run(args, "vae", model, optimizer, len(train.images), "validation_loss", PANELS,
              line="MSE {mse:.5f}, PSNR {psnr:.2f} dB, rate {kl_bits:.1f} bits and loss {loss:.1f} nats per image",
              data=stored["data"] | {"dataset": args.DATASET, "class_names": data.class_names},
              sizes=sizes, images=dataset.digest(data.train))
    stepped = run.prepare()

    while run.epoch < args.EPOCHS:
        for (images,) in run.batches(train.images):
            noise = devices.share(torch.randn(run.batch, args.LATENT_DIM)).to(device)
            with run.autocast():
                batch = terms(stepped, images, noise)
            # the optimal variance for the whole batch ([2] in judging/vae.py), a constant to the gradient
            variance = devices.all_sum(batch["mse"].detach() * len(images)) / run.batch
            loss = distortion(batch["mse"], variance, pixels) + args.BETA * batch["kl"]
            run.step(loss, len(images), batch)
        name = f"epoch_{run.epoch + 1:03d}.png"
        run.end_epoch(summarise(over_processes(run.totals), pixels, args.BETA),
                      measure(model, validation.images, args.BATCH_SIZE, args.BETA),
                      draw=lambda: save_pictures(model, validation.images, args, name))

    model.load_state_dict(run.best)
    if devices.is_main():
        shown = test.images[:10].to(device)
        attempt(lambda: save_comparison(model, vqvae.to(device), stored, shown, args), "vae_comparison.png")
    devices.wait()  # the main process may have been drawing
    run.finish(measure(model, test.images, args.BATCH_SIZE, args.BETA))
    lock.release()


@torch.no_grad()
def save_pictures(model: VAE, images: Tensor, args: argparse.Namespace, name: str, count: int = 64) -> None:
    """Write uint8 images over their reconstructions, and `count` samples, into a directory for either."""
    output = Path(args.OUTPUT_DIR)
    save_reconstructions(model, images, args.BATCH_SIZE, output / "vae_reconstructions" / name)
    samples = [model.decode(z).cpu() for z in latents(model, count, args.SEED).split(args.BATCH_SIZE)]
    figures.save_grid(torch.cat(samples), output / "vae_samples" / name)


def latents(model: VAE, count: int, seed: int) -> Tensor:
    """(count, latent_dim) draws from the prior, on the model's device."""
    drawn = torch.randn(count, model.config.latent_dim, generator=torch.Generator().manual_seed(seed))
    return drawn.to(next(model.parameters()).device)


@torch.no_grad()
def save_comparison(model: VAE, vqvae: VQVAE, stored: dict, images: Tensor, args: argparse.Namespace) -> None:
    """Write uint8 images, their reconstructions and as many samples of both models, the VQ-VAE's from the prior in the
    directory. Without one that row is left out, with a line that says so.
    """
    originals = dataset.to_float(images)
    size = images.shape[2:]
    rows = {"images of the test split": originals,
            "reconstructed by the VQ-VAE": to_images(vqvae, vqvae.encode(originals), *size),
            "reconstructed by the VAE": model(originals).images,
            "samples of the VAE": model.decode(latents(model, len(images), args.SEED))}
    try:
        prior, network = runs.load_prior(args.OUTPUT_DIR, stored)
        rows[f"samples of the VQ-VAE and its {prior['stage']}"] = draw_images(
            network.to(images.device), vqvae, len(images), size, args.SEED, len(images))
    except UserError as error:
        print(f"no samples of the VQ-VAE in vae_comparison.png: {error}")
    figures.save_strips(rows, "The VAE and the VQ-VAE", Path(args.OUTPUT_DIR) / "vae_comparison.png")


if __name__ == "__main__":
    run_script(main, globals())
