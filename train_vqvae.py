"""Train the VQ-VAE: images in, `vqvae.pt` out.

After every epoch OUTPUT_DIR holds a checkpoint to continue from, the history as a table, its curves, and a
grid of validation images over their reconstructions.

Papers, cited by number in the code:
[1] van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937
"""
import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
import devices
import summary
from adversarial import Sharpness
from cli import UserError
from cli import run as run_script
from codes import PIXELS, perplexity, psnr
from decode import Reading
from modules import VQVAE, Reconstruction, VectorQuantizer, VQVAEConfig, orthogonality
from optimizers import AdamW, Muon
from training import Run, begin, configure, means, over_processes, save_reconstructions, sum_over

DATASET = "glyphs"        # "glyphs" (drawn here, no download), a torchvision name (mnist, cifar10, ...) or a folder
DATA_DIR = "data"         # where data sets are kept, or downloaded to
OUTPUT_DIR = "output"     # the run's directory: one directory is one run
LIMIT = 0                 # use only the first N images of the training and of the test part; 0: all
IMAGE_SIZE = "auto"       # of a folder's images; "auto": a common one; 64 or 256x128 (height x width): resized, cropped
CHANNELS = "auto"         # of a folder's images; "auto": 1 if all are grey, or else 3; 1: grey; 3: RGB
NIFTI_AXIS = 2            # how NIfTI volumes are cut into slices: 0 sagittal, 1 coronal, 2 axial
NIFTI_SCALE = "volume"    # intensities are scaled to 8 bits over each "slice", each "volume" or the whole "folder" ...
NIFTI_LOW = 0.5           # ... from this percentile, which becomes black ...
NIFTI_HIGH = 99.5         # ... to this one, which becomes white
MAX_UNREADABLE = 0.01     # share of a folder's files, or images, that may be left out: damaged, or of no fitting size
VALUE_RANGE = "auto"      # black and white of files of more than 8 bits: "0 4095", or "auto": those percentiles of all
CLASSES = "auto"          # of a folder: by the rule in README.md; "folders": its first folders; "none": no classes
EPOCHS = "auto"           # passes over the training images; "auto": 3, or more for 2 steps a pixel, up to 10,000 steps
BATCH_SIZE = "auto"       # images a step, over all processes; "auto": 32 for up to 48x48 pixels, 16 for 96x96, 8 above
OPTIMIZER = "muon"        # "muon": kernels by Muon, the rest by Adam; or "adam"
LEARNING_RATE = 2e-3      # the highest; it rises briefly, and at the end falls to 0
SEED = 0                  # of the weights, the order of the images and the revival of codes
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
DOWNSAMPLE = 4            # pixels a code stands for along each side: 2, 4, 8 or 16
LEVELS = 1                # grids of codes of an image: 1, or 2: also a coarse one, of half the size along each side
ARCHITECTURE = "auto"     # "paper", as in [1], or "space-to-depth"; "auto": "paper" for images of up to 48x48 pixels
HIDDEN = 64               # channels of encoder and decoder
RESIDUAL_BLOCKS = 2       # in the encoder, and as many in the decoder
RESIDUAL_HIDDEN = 32      # channels inside a residual block of the "paper"
NUM_CODES = "auto"        # K, entries in a level's codebook; "auto": 128 for images of up to 48x48 pixels, 512 above
CODE_DIM = 32             # D, size of a codebook entry
NORMALISE = "layer"       # z_e, before it is quantized: "layer" norm, or "length": one length, so cosine distance
CODEBOOK = "ema"          # how it learns: "ema" (moving averages) or "gradient" (the codebook loss)
EMA_DECAY = 0.97          # of the moving averages, per step; nearer to 1 is slower and smoother
REVIVE_BELOW = 0.02       # a code used less than this share of the average is put onto a current z_e; 0: never
COMMITMENT_COST = 1.0     # beta in [1], eq. 3: how strongly z_e is held to its code
ORTHOGONAL = 0.0          # weight of a loss for an orthogonal codebook, with CODEBOOK "gradient"; 0: none
ADVERSARIAL = 0.0         # pull of a discriminator, 1: as strong as that of the error; sharper, of lower PSNR; 0: off
PERCEPTUAL = 0.0          # pull of LPIPS, whose weights are downloaded, or of the discriminator's features; 0: off
ADVERSARIAL_START = 0.5   # share of the training after which either counts
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
PRECISION = "auto"        # of a training step: "float32", "bfloat16", or "auto": bfloat16 where the device has it
TENSORBOARD = False       # write event files for TensorBoard as well

PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"], "PSNR (dB)": ["train_psnr", "validation_psnr"],
          "latent losses": ["train_codebook_loss", "train_commitment_loss", "validation_commitment_loss"],
          "codebook perplexity": ["train_perplexity", "validation_perplexity"]}
COARSE_PANELS = {"codebook perplexity, coarse level": ["train_coarse_perplexity", "validation_coarse_perplexity"]}
LINES = ["MSE {mse:.5f}, PSNR {psnr:.2f} dB, perplexity {perplexity:.1f}, codes used {codes_used:.1%}",
         "; coarse level: perplexity {coarse_perplexity:.1f}, codes used {coarse_codes_used:.1%}"]


def terms(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a batch of uint8 images adds to the losses and metrics."""
    images = dataset.to_float(images)
    return compare(images, model(images))


def compare(images: Tensor, output: Reconstruction) -> dict[str, Tensor]:
    """The terms of images and what the model makes of them: MSE over pixels in [0, 1], the two latent losses, summed
    over the levels, and the counts of the codes: "counts" of the last level, "coarse_counts" of one before it.
    """
    levels = output.quantized
    return {"mse": F.mse_loss(output.images.float(), images),
            "codebook_loss": sum(level.codebook_loss for level in levels),
            "commitment_loss": sum(level.commitment_loss for level in levels),
            **{name: level.counts for name, level in zip(("counts", "coarse_counts"), reversed(levels))}}


def summarise(totals: dict[str, Tensor]) -> dict[str, float]:
    """A split's metrics from its sums: means of the terms, PSNR in dB of the mean MSE, and for each level the
    perplexity of the codes and the share of the codebook in use.
    """
    result = means(totals)
    result = {"mse": result["mse"], "psnr": psnr(result["mse"]), **result}
    for prefix in ("", "coarse_"):
        counts = totals.get(f"{prefix}counts")
        if counts is not None:
            result |= {f"{prefix}perplexity": perplexity(counts),
                       f"{prefix}codes_used": (counts > 0).float().mean().item()}
    return result


def fit_to(args: argparse.Namespace, count: int, height: int, width: int) -> None:
    """Set the constants that are "auto" from the number and the size of the training images."""
    pixels = height * width
    small = pixels <= 48**2
    auto = {"BATCH_SIZE": min(count, 32 if small else 16 if pixels <= 96**2 else 8),
            "NUM_CODES": 128 if small else 512, "ARCHITECTURE": "paper" if small else "space-to-depth"}
    for name, value in auto.items():
        if getattr(args, name) == "auto":
            setattr(args, name, value)
    if args.EPOCHS == "auto":
        args.EPOCHS = dataset.auto_epochs(3, min(2 * pixels, 10_000), math.ceil(count / args.BATCH_SIZE))


def main(args: argparse.Namespace) -> None:
    if args.ORTHOGONAL and args.CODEBOOK != "gradient":
        raise UserError(f"ORTHOGONAL (--orthogonal) of {args.ORTHOGONAL} needs a codebook learnt by gradient: add "
                        f"--codebook gradient")
    device = devices.pick(args.DEVICE)
    reading = Reading.of(args)
    lock, data = begin(args, reading)
    summary.show(args.DATASET, data, args.OUTPUT_DIR)
    devices.wait()  # the main process may have been drawing
    train, validation, test = (split.to(device) for split in data[:3])
    channels, height, width = train.images.shape[1:]
    fit_to(args, len(train.images), height, width)
    model = VQVAE(configure(VQVAEConfig, args, channels=channels))
    model.to(device, memory_format=torch.channels_last)
    for quantizer in model.quantizers:
        devices.join(quantizer)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AdamW(weights, args.LEARNING_RATE) if args.OPTIMIZER == "adam" \
        else Muon(weights, args.LEARNING_RATE, adam=[quantizer.codebook for quantizer in model.quantizers])
    two = args.LEVELS == 2
    monitor, panels, more = "validation_mse", PANELS | (COARSE_PANELS if two else {}), {}
    sharpness = Sharpness(args, model, height, width) if args.ADVERSARIAL or args.PERCEPTUAL else None
    if sharpness:  # sharp images are not those of least error: the last weights are kept
        monitor, panels, more = None, panels | sharpness.panels, sharpness.kept
    run = Run(args, "vqvae", model, optimizer, len(train.images), monitor, panels,
              line="".join(LINES[:args.LEVELS]),
              data={"dataset": args.DATASET, "data_dir": args.DATA_DIR, "limit": args.LIMIT,
                    "class_names": data.class_names, "reading": reading._asdict(), "value_range": data.value_range,
                    "channels": channels, "height": height, "width": width},
              images=dataset.digest(data.train), **more)
    variance = max(dataset.pixel_variance(train.images), 1e-6)  # puts the error on the scale of the latent losses
    if not run.resumed:
        start_codebooks(model, train.images, args.BATCH_SIZE)
    stepped = run.prepare()

    while run.epoch < args.EPOCHS:
        for (images,) in run.batches(train.images):
            images = dataset.to_float(images)
            with run.autocast():
                output = stepped(images)
                batch = compare(images, output)
            error = batch["mse"] / variance
            loss = error + args.COMMITMENT_COST * batch["commitment_loss"]
            if args.CODEBOOK == "gradient":
                loss = loss + batch["codebook_loss"]
            if args.ORTHOGONAL:
                loss = loss + args.ORTHOGONAL * sum(orthogonality(level.codebook) for level in model.quantizers)
            if sharpness:
                with run.autocast():
                    added, sharp = sharpness(error, images, output.images, run.progress, len(images) / run.batch)
                loss, batch = loss + added, batch | sharp
            run.step(loss, len(images), batch)
        path = Path(args.OUTPUT_DIR) / "reconstructions" / f"epoch_{run.epoch + 1:03d}.png"
        run.end_epoch(summarise(over_processes(run.totals)),
                      summarise(sum_over(terms, model, args.BATCH_SIZE, validation.images)),
                      draw=lambda: save_reconstructions(model, validation.images, args.BATCH_SIZE, path))

    model.load_state_dict(run.best)
    result = summarise(sum_over(terms, model, args.BATCH_SIZE, test.images))
    run.finish(result)
    used = min(result["codes_used"], result.get("coarse_codes_used", 1))
    if used < 0.5 and devices.is_main():
        print(f"only {used:.0%} of {'a' if two else 'the'} codebook is in use: try --codebook ema, or a higher "
              f"--revive-below", file=sys.stderr)
    lock.release()


@torch.no_grad()
def start_codebooks(model: VQVAE, images: Tensor, batch_size: int, most: int = 256) -> None:
    """Put the codebook of every level onto the latents of some of the uint8 images, drawn by chance.

    They are `most`, fewer if they have more than PIXELS pixels together, but at least a batch.
    """
    count = max(batch_size, min(most, PIXELS // images[0, 0].numel()))
    chosen = devices.share(torch.randperm(len(images))[:count])
    (images,), = dataset.batches([chosen], next(model.parameters()).device, images)
    model.quantize(dataset.to_float(images), VectorQuantizer.start)


if __name__ == "__main__":
    run_script(main, globals())
