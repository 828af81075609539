"""Train the VQ-VAE: images in, `vqvae.pt` out.

After every epoch OUTPUT_DIR holds a checkpoint to continue from, the history as a table, its curves, and a grid of
validation images over their reconstructions.

Papers, cited by number in the code:
[1] van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937
"""
import running.start  # noqa: F401

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from loading import summary
from loading.reading import Reading
from loading.settings import *  # noqa: F403
from modules import Reconstruction, VQVAEConfig, grid_size
from priors.codes import PIXELS, perplexity, psnr, warn_if_unused
from running import devices
from running.cli import run as run_script
from training.loop import (
    Run,
    begin,
    configure,
    filled,
    images_a_step,
    means,
    over_processes,
    save_reconstructions,
    sum_over,
)
from training.optimizers import AdamW, Muon
from training.quantizers import code_dim, make_vqvae
from training.settings import *  # noqa: F403

DATASET = "glyphs"        # "glyphs" (drawn here, no download), a torchvision name (mnist, cifar10, ...) or a folder
DATA_DIR = "data"         # where data sets are kept, or downloaded to
OUTPUT_DIR = "output"     # the run's directory: one directory is one run
LIMIT = 0                 # use only the first N images of the training and of the test part; 0: all
IMAGE_SIZE = "auto"       # of a folder's images; "auto": a common one; 64 or 256x128 (height x width): resized, cropped
CHANNELS = "auto"         # of a folder's images; "auto": 1 if all are grey, or else 3; 1: grey; 3: RGB
CLASSES = "auto"          # of a folder: by the rule in docs/DATA.md; "folders": its first folders; "none": no classes
EPOCHS = "auto"           # passes over the training images; "auto": 3, or more for 2 steps a pixel, up to 10,000 steps
BATCH_SIZE = "auto"       # images a step, over all processes; "auto": 32 for up to 48x48 pixels, 16 for 96x96, 8 above
OPTIMIZER = "muon"        # "muon": kernels by Muon, the rest by Adam; or "adam"
LEARNING_RATE = 2e-3      # the highest; it rises briefly, and at the end falls to 0
SEED = 0                  # of the weights, the order of the images and the revival of codes
DOWNSAMPLE = "auto"       # pixels a code covers a side: 2, 4, 8 or 16; "auto": 4, more above 512 codes (grey: 1,024)
ARCHITECTURE = "auto"     # "paper", as in [1], or "space-to-depth"; "auto": "paper" for images of up to 48x48 pixels
HIDDEN = 64               # channels of encoder and decoder
RESIDUAL_BLOCKS = 2       # in the encoder, and as many in the decoder
RESIDUAL_HIDDEN = 32      # channels inside a residual block of the "paper"
NUM_CODES = "auto"        # K, entries in the codebook; "auto": 128 up to 48x48 pixels, 512 above, 1024 for 8x8, 16x16
CODE_DIM = "auto"         # D, size of a codebook entry; "auto": 32, or what "fsq" and "bsq" need for NUM_CODES
QUANTIZER = "vq"          # "vq"; or "fsq", "bsq", "simvq", see training/quantizers.py
GRADIENT = "straight"     # how that of z_q is passed on to z_e: "straight" (through), or by the "rotation" trick
CODEBOOK = "ema"          # how that of "vq" learns: "ema" (moving averages) or "gradient" (the codebook loss)
EMA_DECAY = 0.97          # of the moving averages, per step; nearer to 1 is slower and smoother
REVIVE_BELOW = 0.02       # a code used less than this share of the average is put onto a current z_e; 0: never
COMMITMENT_COST = 1.0     # beta in [1], eq. 3: how strongly z_e is held to its code

PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"], "PSNR (dB)": ["train_psnr", "validation_psnr"],
          "latent losses": ["train_codebook_loss", "train_commitment_loss", "validation_commitment_loss"],
          "codebook perplexity": ["train_perplexity", "validation_perplexity"]}
LINE = "MSE {mse:.5f}, PSNR {psnr:.2f} dB, perplexity {perplexity:.1f}, codes used {codes_used:.1%}"


def terms(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a batch of uint8 images adds to the losses and metrics."""
    return compare(images := dataset.to_float(images), model(images))


def compare(images: Tensor, output: Reconstruction) -> dict[str, Tensor]:
    """The terms of images and what the model makes of them: MSE over pixels in [0, 1], the two latent losses, and how
    often each code was chosen.
    """
    quantized = output.quantized
    return {"mse": F.mse_loss(output.images.float(), images), "codebook_loss": quantized.codebook_loss,
            "commitment_loss": quantized.commitment_loss, "counts": quantized.counts}


def summarise(totals: dict[str, Tensor]) -> dict[str, float]:
    """A split's metrics from its sums: means of the terms, PSNR in dB of the mean MSE, the perplexity of the codes and
    the share of the codebook in use.
    """
    counts = totals["counts"]
    return {"mse": (mse := means(totals)["mse"]), "psnr": psnr(mse), **means(totals), "perplexity": perplexity(counts),
            "codes_used": (counts > 0).float().mean().item()}


def fit_to(args: argparse.Namespace, count: int, channels: int, height: int, width: int) -> argparse.Namespace:
    """The constants, those of "auto" chosen by the number and the size of the training images."""
    pixels, most = height * width, 512 if channels == 3 else 1024  # a scan loses its detail to codes for 8x8 pixels
    small = pixels <= 48**2
    sides = [side for side in (4, 8, 16) if math.prod(grid_size(height, width, side)) <= most]
    args = filled(args, BATCH_SIZE=min(count, images_a_step(pixels)), DOWNSAMPLE=(sides or [16])[0])
    args = filled(args, NUM_CODES=128 if small else 512 if args.DOWNSAMPLE <= 4 else 1024,
                  ARCHITECTURE="paper" if small else "space-to-depth")
    args = filled(args, CODE_DIM=code_dim(args.QUANTIZER, args.NUM_CODES))
    steps = math.ceil(count / args.BATCH_SIZE)
    return filled(args, EPOCHS=dataset.auto_epochs(3, min(2 * pixels, 10_000), steps))


def main(args: argparse.Namespace) -> None:
    device, reading = devices.pick(args.DEVICE), Reading.of(args)
    lock, data = begin(args, reading)
    summary.show(args.DATASET, data, args.OUTPUT_DIR)
    train, validation, test = (split.to(device) for split in data[:3])
    channels, height, width = train.images.shape[1:]
    args = fit_to(args, len(train.images), channels, height, width)
    model = make_vqvae(configure(VQVAEConfig, args, channels=channels))
    model.to(device, memory_format=torch.channels_last)
    devices.join(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AdamW(weights, args.LEARNING_RATE) if args.OPTIMIZER == "adam" \
        else Muon(weights, args.LEARNING_RATE, adam=list(model.quantizer.parameters()))
    run = Run(args, "vqvae", model, optimizer, len(train.images), "validation_mse", PANELS, line=LINE,
              data={"dataset": args.DATASET, "data_dir": args.DATA_DIR, "limit": args.LIMIT,
                    "class_names": data.class_names, "reading": reading._asdict(), "value_range": data.value_range,
                    "channels": channels, "height": height, "width": width},
              images=dataset.digest(data.train))
    variance = max(dataset.pixel_variance(train.images), 1e-6)  # puts the error on the scale of the latent losses
    if not run.resumed:
        some = torch.randperm(len(train.images))[:max(args.BATCH_SIZE, min(256, PIXELS // (height * width)))]
        some = dataset.gather(train.images, devices.share(some)).to(device)
        with torch.no_grad():
            model.quantizer.start(model.latents(dataset.to_float(some)))
    stepped = run.prepare()

    while run.epoch < args.EPOCHS:
        for (images,) in run.batches(train.images):
            images = dataset.to_float(images)
            with run.autocast():
                batch = compare(images, stepped(images))
            loss = batch["mse"] / variance + args.COMMITMENT_COST * batch["commitment_loss"]
            if not model.quantizer.ema:
                loss = loss + batch["codebook_loss"]
            run.step(loss, len(images), batch)
        path = Path(args.OUTPUT_DIR) / "reconstructions" / f"epoch_{run.epoch + 1:03d}.png"
        run.end_epoch(summarise(over_processes(run.totals)),
                      summarise(sum_over(terms, model, args.BATCH_SIZE, validation.images)),
                      draw=lambda: save_reconstructions(model, validation.images, args.BATCH_SIZE, path))

    model.load_state_dict(run.best)
    result = summarise(sum_over(terms, model, args.BATCH_SIZE, test.images))
    run.finish(result)
    warn_if_unused(result)
    lock.release()


if __name__ == "__main__":
    run_script(main, globals())
