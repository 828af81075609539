"""Train the VQ-VAE: images in, `vqvae.pt` out.

After every epoch OUTPUT_DIR holds a checkpoint to continue from, the history as a table, its curves, and a
grid of validation images over their reconstructions.

Papers, cited by number in the code:
[1] van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937
"""
import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import dataset
import devices
import figures
from cli import run as run_script
from decode import Reading
from files import lock_run
from modules import VQVAE, perplexity, psnr
from training import AdamW, Run, should_compile

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
EPOCHS = 3                # passes over the training images
BATCH_SIZE = 64           # images a step, over all processes together
LEARNING_RATE = 2e-3      # the highest, of Adam; it rises briefly and then falls to 0
SEED = 0                  # of the weights, the order of the images and the revival of codes
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
DOWNSAMPLE = 4            # pixels a code stands for along each side: 2, 4 or 8
HIDDEN = 64               # channels of encoder and decoder
RESIDUAL_BLOCKS = 2       # in the encoder, and as many in the decoder
RESIDUAL_HIDDEN = 32      # channels inside a residual block
NUM_CODES = 128           # K, entries in the codebook
CODE_DIM = 64             # D, size of a codebook entry
CODEBOOK = "ema"          # how it learns: "ema" (moving averages) or "gradient" (the codebook loss)
EMA_DECAY = 0.97          # of the moving averages, per step; nearer to 1 is slower and smoother
REVIVE_BELOW = 0.02       # a code used less than this share of the average is put onto a current z_e; 0: never
COMMITMENT_COST = 0.25    # beta in [1], eq. 3: how strongly z_e is held to its code
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
TENSORBOARD = False       # write event files for TensorBoard as well

PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"], "PSNR (dB)": ["train_psnr", "validation_psnr"],
          "latent losses": ["train_codebook_loss", "train_commitment_loss", "validation_commitment_loss"],
          "codebook perplexity": ["train_perplexity", "validation_perplexity"]}


def metrics(totals: dict[str, Tensor], num_codes: int) -> dict[str, float]:
    """A split's metrics from its sums: MSE over pixels in [0, 1] and its PSNR in dB, the two latent losses, the
    perplexity of the codes and the share of the codebook in use.
    """
    totals = {name: devices.all_sum(total.clone()) for name, total in totals.items()}
    count = totals["count"].item()
    mse = totals["mse"].item() / count
    return {"mse": mse, "psnr": psnr(mse),
            "codebook_loss": totals["codebook_loss"].item() / count,
            "commitment_loss": totals["commitment_loss"].item() / count,
            "perplexity": perplexity(totals["counts"]),
            "codes_used": (totals["counts"] > 0).sum().item() / num_codes}


@torch.no_grad()
def evaluate(model: VQVAE, images: Tensor, batch_size: int) -> dict[str, float]:
    """The metrics of uint8 images (N, C, H, W); each process does its share."""
    model.eval()
    device = next(model.parameters()).device
    names = ("count", "mse", "codebook_loss", "commitment_loss")
    totals = {name: torch.zeros((), device=device) for name in names}
    totals["counts"] = torch.zeros(model.config["num_codes"], dtype=torch.int64, device=device)
    for part, in dataset.batches(devices.parts(torch.arange(len(images)), batch_size), device, images):
        batch = dataset.to_float(part)
        output = model(batch)
        sums = {"count": torch.tensor(float(len(batch)), device=batch.device),
                "mse": F.mse_loss(output.images, batch) * len(batch),
                "codebook_loss": output.quantized.codebook_loss * len(batch),
                "commitment_loss": output.quantized.commitment_loss * len(batch),
                "counts": output.quantized.counts}
        totals = {name: totals[name] + value for name, value in sums.items()}
    return metrics(totals, model.config["num_codes"])


def pixel_variance(images: Tensor, enough: int = 2**24) -> float:
    """Variance of the pixels, scaled to [0, 1], of uint8 images; of evenly spaced ones, with `enough` pixels."""
    spaced = torch.arange(0, len(images), math.ceil(images.nbytes / enough))
    parts = dataset.batches(spaced.split(1024), images.device, images)
    histogram = sum(torch.bincount(part.flatten(), minlength=256) for part, in parts).double().cpu()
    values = torch.arange(256).double() / 255
    mean = (histogram * values).sum() / histogram.sum()
    return ((histogram * (values - mean) ** 2).sum() / histogram.sum()).item()


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    held = lock_run(args.OUTPUT_DIR) if devices.is_main() else None
    torch.manual_seed(args.SEED)
    reading = Reading(*(getattr(args, name.upper()) for name in Reading._fields))
    with devices.first_on_machine():
        data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading)
    train, validation, test = (split.to(device) for split in data[:3])
    channels, height, width = train.images.shape[1:]
    model = VQVAE(channels, args.HIDDEN, args.RESIDUAL_BLOCKS, args.RESIDUAL_HIDDEN, args.DOWNSAMPLE, args.NUM_CODES,
                  args.CODE_DIM, args.CODEBOOK, args.EMA_DECAY, args.REVIVE_BELOW)
    model.to(device, memory_format=torch.channels_last)
    optimizer = AdamW((weight for weight in model.parameters() if weight.requires_grad), args.LEARNING_RATE)
    run = Run(args, "vqvae", model, optimizer, len(train.images), "validation_mse", PANELS,
              data={"dataset": args.DATASET, "data_dir": args.DATA_DIR, "limit": args.LIMIT,
                    "class_names": data.class_names, "reading": reading._asdict(), "channels": channels,
                    "height": height, "width": width},
              images=dataset.digest(data.train))
    variance = max(pixel_variance(train.images), 1e-6)  # puts the error on the scale of the latent losses
    if not run.resumed:
        with torch.no_grad():
            enough = max(args.BATCH_SIZE, min(256, 2**19 // (height * width)))  # large images have many vectors each
            first = devices.share(torch.randperm(len(train.images))[:enough])
            (images,), = dataset.batches([first], device, train.images)
            model.quantizer.start(model.latents(dataset.to_float(images)))
    if should_compile(args, device, run.steps):
        model.compile()
    stepped = DistributedDataParallel(model) if devices.world() > 1 else model
    shown = torch.randperm(len(validation.images), generator=torch.Generator().manual_seed(0))[:32]

    while run.epoch < args.EPOCHS:
        model.train()
        with run.progress() as bar:
            for count, (images,) in run.batches(train.images):
                images = dataset.to_float(images)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    output = stepped(images)
                quantized = output.quantized
                mse = F.mse_loss(output.images.float(), images)
                loss = mse / variance + args.COMMITMENT_COST * quantized.commitment_loss
                if args.CODEBOOK == "gradient":
                    loss = loss + quantized.codebook_loss
                # every image counts the same, also where the processes' shares differ by one
                optimizer.zero_grad()
                (loss * len(images) * devices.world() / count).backward()
                optimizer.step()
                sofar = run.add(loss, len(images), mse=mse * len(images),
                                codebook_loss=quantized.codebook_loss * len(images),
                                commitment_loss=quantized.commitment_loss * len(images), counts=quantized.counts)
                bar.update()
                if sofar:
                    bar.set_postfix(mse=f"{sofar['mse']:.5f}", commitment=f"{sofar['commitment_loss']:.3f}")
        row = {f"train_{name}": value for name, value in metrics(run.totals, args.NUM_CODES).items()}
        row |= {f"validation_{name}": value
                for name, value in evaluate(model, validation.images, args.BATCH_SIZE).items()}
        if devices.is_main():
            (images,), = dataset.batches([shown], device, validation.images)
            save_reconstructions(model, images,
                                 Path(args.OUTPUT_DIR) / "reconstructions" / f"epoch_{run.epoch + 1:03d}.png")
            print(f"epoch {run.epoch + 1}/{args.EPOCHS}: train MSE {row['train_mse']:.5f}, validation MSE "
                  f"{row['validation_mse']:.5f}, PSNR {row['validation_psnr']:.2f} dB, perplexity "
                  f"{row['validation_perplexity']:.1f}, codes used {row['validation_codes_used']:.1%}")
        run.end_epoch(row)

    model.load_state_dict(run.best)
    result = evaluate(model, test.images, args.BATCH_SIZE)
    if devices.is_main():
        print(f"test: MSE {result['mse']:.5f}, PSNR {result['psnr']:.2f} dB, perplexity {result['perplexity']:.1f} of "
              f"{args.NUM_CODES}, codes used {result['codes_used']:.1%}")
        print(f"wrote {run.path}, and its history, curves and reconstructions beside it")
    if held:
        held.release()


@torch.no_grad()
def save_reconstructions(model: VQVAE, images: Tensor, path: Path) -> None:
    """Write a grid of uint8 images with their reconstructions below them, sixteen a row."""
    originals = dataset.to_float(images)
    copies = model.eval()(originals).images
    figures.save_pairs(originals, copies, path, columns=16)


if __name__ == "__main__":
    run_script(main, globals())
