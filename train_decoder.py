"""Finish the decoder of a trained VQ-VAE: `vqvae.pt` in, `decoder.pt` out, by which every script decodes from then on.

Minimising the squared error blurs. Here the decoder alone learns on, from the codes of the training images, with a
perceptual loss: see training/imagenet.py. Encoder and codebook stay as they are, so a prior fits whether it was trained
before or is trained after. To decode by vqvae.pt again, move decoder.pt away.
"""
import running.start  # noqa: F401

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from loading.reading import Reading
from modules import VQVAE
from priors import runs
from priors.codes import encode, psnr
from running import devices
from running.cli import run as run_script
from training import checkpoint, imagenet
from training.loop import Run, begin, filled, images_a_step, means, over_processes, save_reconstructions, sum_over
from training.optimizers import Muon
from training.settings import *  # noqa: F403

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # use only the first N images of each part; 0: all; None: as in the training
EPOCHS = "auto"           # passes over the training images; "auto": 1, or more for 1,400 steps
BATCH_SIZE = "auto"       # images a step, over all processes; "auto": 32 for up to 48x48 pixels, 16 for 96x96, 8 above
LEARNING_RATE = 1e-3      # the highest, of Muon; it rises briefly, and at the end falls to 0
SEED = 0                  # of the order of the images
PERCEPTUAL = 0.1          # weight of the error in features of a network trained on ImageNet; of the MSE it is 1

STEPS = 1_400  # that EPOCHS of "auto" makes at least
PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"], "PSNR (dB)": ["train_psnr", "validation_psnr"],
          "perceptual loss": ["train_perceptual", "validation_perceptual"]}
LINE = "MSE {mse:.5f}, PSNR {psnr:.2f} dB, perceptual loss {perceptual:.4f}"


def terms(vqvae: VQVAE, network: nn.Module, variance: float, weight: float, decoder: nn.Module, images: Tensor,
          codes: Tensor) -> dict[str, Tensor]:
    """What a batch of uint8 images and their codes adds to the losses: MSE over pixels in [0, 1], the perceptual loss
    in features of `network`, and their sum. variance: of the pixels, over which the MSE is taken; weight: PERCEPTUAL.
    """
    images = dataset.to_float(images)
    with torch.no_grad():
        z_q = vqvae.quantizer.look_up(codes.long())
    copies = decoder(z_q)[:, :, :images.shape[2], :images.shape[3]].float()
    seen = imagenet.jitter(images, copies) if torch.is_grad_enabled() else (images, copies)
    mse, perceptual = F.mse_loss(copies, images), imagenet.perceptual_loss(network, *seen)
    return {"mse": mse, "perceptual": perceptual, "loss": mse / variance + weight * perceptual}


def summarise(totals: dict[str, Tensor]) -> dict[str, float]:
    """A split's metrics from its sums: means of the terms, and PSNR in dB of the mean MSE."""
    result = means(totals)
    return result | {"psnr": psnr(result["mse"])}


def fit_to(args: argparse.Namespace, count: int, pixels: int) -> argparse.Namespace:
    """The constants, those of "auto" chosen by the number and the size of the training images."""
    args = filled(args, BATCH_SIZE=min(count, images_a_step(pixels)))
    return filled(args, EPOCHS=dataset.auto_epochs(1, STEPS, math.ceil(count / args.BATCH_SIZE)))


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    network = imagenet.load(imagenet.TEACHES, "train_decoder.py", device)  # first, as it may fail
    stored, vqvae = runs.load_vqvae(args.OUTPUT_DIR, for_training=True, finished=False)
    vqvae.to(device, memory_format=torch.channels_last).requires_grad_(False)
    args = checkpoint.fill(args, stored)
    lock, data = begin(args, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    train, validation, test = ([dataset.place(part, device) for part in (split.images, encode(vqvae, split.images))]
                               for split in data[:3])
    args = fit_to(args, len(train[0]), train[0][0, 0].numel())
    decoder = runs.Decoder(vqvae.config)
    decoder.layers.load_state_dict(vqvae.decoder.state_dict())
    vqvae.decoder = decoder.to(device, memory_format=torch.channels_last).layers
    variance = max(dataset.pixel_variance(data.train.images), 1e-6)  # as in the training of the VQ-VAE
    terms_of = partial(terms, vqvae, network, variance, args.PERCEPTUAL)
    run = Run(args, "decoder", decoder, Muon(list(decoder.parameters()), args.LEARNING_RATE), len(train[0]),
              "validation_loss", PANELS, line=LINE, data=stored["data"] | {"dataset": args.DATASET},
              vqvae=checkpoint.fingerprint(stored["model"]), images=dataset.digest(data.train))
    stepped = run.prepare()

    while run.epoch < args.EPOCHS:
        for images, codes in run.batches(*train):
            with run.autocast():
                batch = terms_of(stepped, images, codes)
            run.step(batch["loss"], len(images), batch)
        path = Path(args.OUTPUT_DIR) / "decoder_reconstructions" / f"epoch_{run.epoch + 1:03d}.png"
        run.end_epoch(summarise(over_processes(run.totals)),
                      summarise(sum_over(terms_of, decoder, args.BATCH_SIZE, *validation)),
                      draw=lambda: save_reconstructions(vqvae.eval(), validation[0], args.BATCH_SIZE, path))

    decoder.load_state_dict(run.best)
    run.finish(summarise(sum_over(terms_of, decoder, args.BATCH_SIZE, *test)))
    lock.release()


if __name__ == "__main__":
    run_script(main, globals())
