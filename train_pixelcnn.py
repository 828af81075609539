"""Train a prior on the codes of a trained VQ-VAE: `vqvae.pt` in, `pixelcnn.pt` out, or the file of another PRIOR.

The images are encoded once; training sees codes alone. After every epoch OUTPUT_DIR holds a checkpoint to
continue from, with the weights that did best on the validation split, the history as a table, and its curves.
"""
import argparse
import math
import sys
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import dataset
import devices
import figures
from cli import UserError
from cli import run as run_script
from codes import encode, nll_sums
from decode import Reading
from files import lock_run
from modules import VQVAE, cross_entropy
from priors import PRIORS
from sampler import make_sampler, uniforms
from training import AdamW, Run, should_compile

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # use only the first N images of the training and of the test part; 0: all
EPOCHS = 4                # passes over the training codes
BATCH_SIZE = 32           # grids of codes a step, over all processes together
LEARNING_RATE = 3e-3      # the highest, of AdamW; it rises briefly and then falls to 0
SEED = 0                  # of the weights and the order of the grids
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
PRIOR = "pixelcnn"        # "pixelcnn", "pixelsnail" (with attention between its layers) or "transformer"
HIDDEN = 64               # channels (of either stack, where there are two)
LAYERS = 6                # gated layers, each of which sees KERNEL_SIZE // 2 codes further; or blocks of a transformer
KERNEL_SIZE = 3           # of the masked convolutions, odd; a transformer has none
HEADS = 4                 # of the attention, which share HIDDEN; a PixelCNN has none
ATTENTION_EVERY = 3       # gated layers of a PixelSNAIL between one attention and the next
CLASS_DROPOUT = 0.1       # share of labels hidden in training, so that the model can draw without a class too
SAMPLE_EVERY = 2          # epochs between grids of samples; 0: none
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
TENSORBOARD = False       # write event files for TensorBoard as well

PANELS = {"negative log-likelihood (nats per code)": ["train_nll", "validation_nll"],
          "bits per image": ["train_bits_per_image", "validation_bits_per_image"]}


def metrics(totals: dict[str, Tensor], positions: int) -> dict[str, float]:
    """A split's negative log-likelihood from its sums: in nats per code, and in bits per image of `positions` codes."""
    totals = {name: devices.all_sum(total.clone()) for name, total in totals.items()}
    nll = (totals["nll"] / totals["count"]).item()
    return {"nll": nll, "bits_per_image": nll * positions / math.log(2)}


def evaluate(model: nn.Module, codes: Tensor, labels: Tensor, batch_size: int) -> dict[str, float]:
    """The metrics of codes (N, H, W) given their labels; each process does its share."""
    indices = devices.parts(torch.arange(len(codes)), batch_size)
    return metrics(nll_sums(model, codes, labels, indices), codes[0].numel())


def make_prior(args: argparse.Namespace, num_codes: int, num_classes: int) -> nn.Module:
    """The prior that PRIOR names, with those of the constants that it has."""
    network = PRIORS[args.PRIOR]
    sizes = {"num_codes": num_codes, "num_classes": num_classes, "hidden": args.HIDDEN, "layers": args.LAYERS,
             "kernel_size": args.KERNEL_SIZE, "heads": args.HEADS, "attention_every": args.ATTENTION_EVERY}
    try:
        return network(**{name: sizes[name] for name in signature(network).parameters})
    except ValueError as error:
        raise UserError(f"HIDDEN (--hidden) and HEADS (--heads): {error}") from None


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device, memory_format=torch.channels_last)
    args = checkpoint.fill(args, stored)
    state = stored.get("training")
    if isinstance(state, dict) and state.get("finished") is False and devices.is_main():
        print("vqvae.pt is of a training that was stopped: if that goes on, this prior will not fit it any more",
              file=sys.stderr)
    held = lock_run(args.OUTPUT_DIR) if devices.is_main() else None
    torch.manual_seed(args.SEED)
    with devices.first_on_machine():
        data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    train, validation, test = (dataset.place(encode(vqvae, split.images), device) for split in data[:3])
    train_labels, validation_labels, test_labels = (dataset.place(split.labels, device) for split in data[:3])
    num_classes = len(data.class_names)
    model = make_prior(args, vqvae.config["num_codes"], num_classes).to(device, memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters(), args.LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    run = Run(args, args.PRIOR, model, optimizer, len(train), "validation_nll", PANELS,
              data=stored["data"] | {"dataset": args.DATASET, "class_names": data.class_names},
              grid=list(train.shape[1:]), vqvae=checkpoint.fingerprint(stored["model"]),
              images=dataset.digest(data.train))
    if should_compile(args, device, run.steps):
        model.compile()
    stepped = DistributedDataParallel(model) if devices.world() > 1 else model
    positions = train[0].numel()

    while run.epoch < args.EPOCHS:
        model.train()
        with run.progress() as bar:
            for count, (codes, labels) in run.batches(train, train_labels):
                hidden = torch.rand(count) < args.CLASS_DROPOUT
                codes = codes.long()
                labels = labels.masked_fill(devices.share(hidden).to(device), num_classes)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    logits = stepped(codes, labels)
                loss = cross_entropy(logits.float(), codes)
                # every grid counts the same, also where the processes' shares differ by one
                optimizer.zero_grad()
                (loss * len(codes) * devices.world() / count).backward()
                optimizer.step()
                sofar = run.add(loss, len(codes), nll=loss * len(codes))
                bar.update()
                if sofar:
                    bar.set_postfix(nll=f"{sofar['nll']:.4f}")
        row = {f"train_{name}": value for name, value in metrics(run.totals, positions).items()}
        row |= {f"validation_{name}": value
                for name, value in evaluate(model, validation, validation_labels, args.BATCH_SIZE).items()}
        if devices.is_main():
            print(f"epoch {run.epoch + 1}/{args.EPOCHS}: train nll {row['train_nll']:.4f}, validation nll "
                  f"{row['validation_nll']:.4f} nats per code, {row['validation_bits_per_image']:.1f} bits per image")
            if args.SAMPLE_EVERY and (run.epoch + 1) % args.SAMPLE_EVERY == 0:
                save_samples(model, vqvae, stored["data"], train.shape[1:], args.SEED,
                             Path(args.OUTPUT_DIR) / "samples" / f"{args.PRIOR}_epoch_{run.epoch + 1:03d}.png")
        run.end_epoch(row)

    model.load_state_dict(run.best)
    result = evaluate(model, test, test_labels, args.BATCH_SIZE)
    if devices.is_main():
        print(f"test: {result['nll']:.4f} nats per code, {result['bits_per_image']:.1f} bits per image (uniform codes: "
              f"{positions * math.log2(vqvae.config['num_codes']):.1f})")
        print(f"wrote {run.path}, and its history and curves beside it")
    if held:
        held.release()


@torch.no_grad()
def save_samples(model: nn.Module, vqvae: VQVAE, data: dict, grid: tuple[int, int], seed: int, path: Path) -> None:
    """Write a grid of 64 samples, the classes in turn; grid: height and width in codes."""
    labels = torch.arange(64) % max(1, model.num_classes)
    codes = make_sampler(model.eval(), 64, grid[1])(labels, uniforms(seed, 0, 64, *grid))
    figures.save_grid(vqvae.decode(codes, data["height"], data["width"]), path)


if __name__ == "__main__":
    run_script(main, globals())
