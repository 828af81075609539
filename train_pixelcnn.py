"""Train a prior on the codes of a trained VQ-VAE: `vqvae.pt` in, `transformer.pt` out, or the file of another PRIOR.

The images are encoded once, or with AUGMENT anew for every epoch; training sees codes alone. After every epoch
OUTPUT_DIR holds a checkpoint to continue from, with the weights that did best on the validation split, the history as a
table, and its curves.
"""
import running.start  # noqa: F401

import argparse
import math
from functools import partial
from pathlib import Path

import torch

import dataset
from loading.reading import Reading
from priors import runs
from priors.codes import augmented_codes, encode
from priors.samples import save_samples
from priors.table import PRIORS, make_optimizer, start_from_codebook
from running import devices
from running.cli import run as run_script
from training import checkpoint
from training.loop import Run, begin, configure, filled, over_processes, sum_over
from training.settings import *  # noqa: F403

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
LIMIT = None              # use only the first N images of each part; 0: all; None: as in the training
EPOCHS = "auto"           # passes over the training codes; "auto": 3 to 10, for 20 steps a position or 10^7 codes
BATCH_SIZE = "auto"       # grids of codes a step, over all processes together; "auto": about 2,048 codes, 4 to 32 grids
LEARNING_RATE = 3e-3      # the highest, of AdamW; it rises briefly, and at the end falls to 0
WEIGHT_DECAY = 0.01       # of AdamW: how strongly weights are drawn towards 0
SEED = 0                  # of the weights and the order of the grids
PRIOR = "transformer"     # "transformer", "pixelcnn" or "masked", which sees the codes on both sides
OPTIMIZER = "auto"        # "muon": matrices by Muon, the rest by Adam; "adam"; "auto": Muon for transformers
HIDDEN = "auto"           # channels (of either stack, where there are two); "auto": 64; transformer, large grids: 96
LAYERS = "auto"           # blocks of a transformer, or gated layers of a PixelCNN; "auto": 4 or 6
KERNEL_SIZE = 3           # of the masked convolutions, odd; a transformer begins with them
HEADS = 4                 # of the attention, which share HIDDEN; a PixelCNN has none
DROPOUT = 0.0             # share of activations set to 0 in a training step, against overfitting
AUGMENT = "none"          # against overfitting: "flip", "shift" or "flip shift" of the images, encoded anew every epoch
CLASS_DROPOUT = 0.1       # share of labels hidden in training, so that the model can draw without a class too
SAMPLE_EVERY = 2          # epochs between grids of samples; 0: none


def fit_to(args: argparse.Namespace, count: int, positions: int) -> argparse.Namespace:
    """The constants, those of "auto" chosen by PRIOR, the number of training images and the codes of an image."""
    attention = PRIORS[args.PRIOR].attention
    args = filled(args, BATCH_SIZE=min(count, max(4, min(32, 2048 // positions))),
                  HIDDEN=96 if attention and positions > 64 else 64, LAYERS=4 if attention else 6,
                  OPTIMIZER="muon" if attention else "adam")
    steps = min(20 * positions, 10**7 // (args.BATCH_SIZE * positions))
    epochs = dataset.auto_epochs(3, steps, math.ceil(count / args.BATCH_SIZE))
    return filled(args, EPOCHS=min(epochs, 10) if args.AUGMENT == "none" else epochs)  # after 10 it overfits


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if device.type == "cpu" and PRIORS[args.PRIOR].attention:  # its gradient takes longer in bfloat16 there
        args = filled(args, PRECISION="float32")
    stored, vqvae = runs.load_vqvae(args.OUTPUT_DIR, for_training=True)
    vqvae.to(device, memory_format=torch.channels_last)
    args = checkpoint.fill(args, stored)
    lock, data = begin(args, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    prior = PRIORS[args.PRIOR]
    objective = prior.objective
    validation, test = ([encode(vqvae, split.images), split.labels] for split in (data.validation, data.test))
    for rows in (validation, test):
        rows += objective.hidden(*rows[0].shape, fixed=True)
    train = [data.train.labels, *([encode(vqvae, data.train.images)] if args.AUGMENT == "none" else [])]
    train, validation, test = ([dataset.place(part, device) for part in rows] for rows in (train, validation, test))
    num_codes, num_classes = vqvae.config.num_codes, len(data.class_names)
    count, grid = len(data.train.images), list(validation[0].shape[1:])
    args = fit_to(args, count, positions := math.prod(grid))
    model = prior.network(configure(prior.config, args, num_codes=num_codes, num_classes=num_classes))
    start_from_codebook(model, vqvae.quantizer.codebook)
    model.to(device, memory_format=torch.channels_last)
    run = Run(args, args.PRIOR, model, make_optimizer(model, args), count, f"validation_{objective.loss}",
              objective.panels, line=objective.line,
              data=stored["data"] | {"dataset": args.DATASET, "class_names": data.class_names,
                                     "class_counts": data.train.labels.bincount(minlength=num_classes).tolist()},
              grid=grid, vqvae=checkpoint.fingerprint(stored["model"]), images=dataset.digest(data.train))
    stepped = run.prepare()
    if args.DROPOUT:
        devices.own_chance(args.SEED * 1_000_003 + run.epoch * run.steps + run.done)

    while run.epoch < args.EPOCHS:
        if args.AUGMENT != "none":
            codes = augmented_codes(vqvae, data.train.images, args.AUGMENT, args.SEED, run.epoch)
            train[1:] = [dataset.place(codes, device)]
            devices.wait()  # another process may take longer to encode
        for labels, codes in run.batches(*train):
            no_class = devices.share(torch.rand(run.batch) < args.CLASS_DROPOUT).to(device)
            hidden = [devices.share(masks).to(device) for masks in objective.hidden(run.batch, *grid)]
            with run.autocast():
                batch = objective.terms(stepped, codes, labels.masked_fill(no_class, num_classes), *hidden)
            run.step(batch[objective.loss], len(codes), batch)
        pictured = args.SAMPLE_EVERY and (run.epoch + 1) % args.SAMPLE_EVERY == 0
        path = Path(args.OUTPUT_DIR) / "samples" / f"{args.PRIOR}_epoch_{run.epoch + 1:03d}.png"
        run.end_epoch(objective.summarise(over_processes(run.totals), positions),
                      objective.summarise(sum_over(objective.terms, model, args.BATCH_SIZE, *validation), positions),
                      draw=partial(save_samples, model, vqvae, stored, args, path) if pictured else None)

    model.load_state_dict(run.best)
    sums = sum_over(objective.terms, model, args.BATCH_SIZE, *test)
    uniform = math.log2(num_codes) * (positions if objective.by_image else 1)
    run.finish(objective.summarise(sums, positions), f"; uniform codes: {uniform:.1f}")
    lock.release()


if __name__ == "__main__":
    run_script(main, globals())
