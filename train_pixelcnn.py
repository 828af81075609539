"""Train a prior on the codes of a trained VQ-VAE: `vqvae.pt` in, `transformer.pt` out, or the file of another PRIOR.

The images are encoded once, or with AUGMENT anew for every epoch; training sees codes alone. After every epoch
OUTPUT_DIR holds a checkpoint to continue from, with the weights that did best on the validation split, the history as a
table, and its curves.

Of a VQ-VAE of two levels, the prior of the coarse codes comes first (`transformer_coarse.pt`), then that of the fine
codes given the coarse ones (`transformer.pt`). The bits of an image are the sum of both.
"""
import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import checkpoint
import dataset
import devices
import fast
import figures
import masked
from cli import UserError
from cli import run as run_script
from codes import cross_entropy, encode, to_images
from decode import Reading
from modules import VQVAE
from optimizers import AdamW, Muon
from priors import PRIORS
from sampler import draw_grids
from training import Run, begin, configure, means, over_processes, sum_over

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # use only the first N images of the training and of the test part; 0: all
EPOCHS = "auto"           # passes over the training codes; "auto": 3 to 10, for 20 steps a position or 10^7 codes
BATCH_SIZE = "auto"       # grids of codes a step, over all processes together; "auto": about 2,048 codes, 4 to 32 grids
LEARNING_RATE = 3e-3      # the highest, of AdamW; it rises briefly, and at the end falls to 0
WEIGHT_DECAY = 0.01       # of AdamW: how strongly weights are drawn towards 0
SEED = 0                  # of the weights and the order of the grids
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
PRIOR = "transformer"     # "transformer", "pixelcnn", "pixelsnail" (with attention between layers) or "masked"
LEVEL = "all"             # of a VQ-VAE of two levels: only the prior of the "coarse" or the "fine" codes; "all": both
OPTIMIZER = "auto"        # "muon": matrices by Muon, the rest by Adam; "adam"; "auto": Muon for transformers
HIDDEN = "auto"           # channels (of either stack, where there are two); "auto": 64; transformer, large grids: 96
LAYERS = "auto"           # blocks of a transformer, or gated layers of the others; "auto": 4 or 6
KERNEL_SIZE = 3           # of the masked convolutions, odd; a transformer begins with them
HEADS = 4                 # of the attention, which share HIDDEN; a PixelCNN has none
ATTENTION_EVERY = 3       # gated layers of a PixelSNAIL between one attention and the next
DROPOUT = 0.0             # share of activations set to 0 in a training step, against overfitting
AUGMENT = "none"          # against overfitting: "flip", "shift" or "flip shift" of the images, encoded anew every epoch
AVERAGE = 0.0             # decay of a running mean of the weights, kept in their place, against overfitting; 0: none
CLASS_DROPOUT = 0.1       # share of labels hidden in training, so that the model can draw without a class too
SAMPLE_EVERY = 2          # epochs between grids of samples; 0: none
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
PRECISION = "auto"        # of a training step: "float32", "bfloat16", or "auto": bfloat16 where it is faster
TENSORBOARD = False       # write event files for TensorBoard as well

BETAS = (0.9, 0.99)       # of AdamW
# The loss of a prior, the panels of its curves, and the line of an epoch
LIKELIHOOD = ("nll", {"negative log-likelihood (nats per code)": ["train_nll", "validation_nll"],
                      "bits per image": ["train_bits_per_image", "validation_bits_per_image"]},
              "nll {nll:.4f} nats per code, {bits_per_image:.1f} bits per image")
# A masked prior has no exact likelihood, so that its metrics have names of their own
BOTH_SIDES = ("hidden_nll", {"hidden codes given the rest (nats per hidden code)": ["train_hidden_nll",
                                                                                  "validation_hidden_nll"]},
              "hidden codes given the rest {hidden_nll:.4f} nats, {bits_per_hidden_code:.3f} bits each")


def terms(model: nn.Module, codes: Tensor, labels: Tensor, *given: Tensor) -> dict[str, Tensor]:
    """What grids of codes (B, H, W) add to the metrics: the negative log-likelihood in nats per code, given the coarse
    codes (B, H / 2, W / 2) if there are any. Of a masked prior, with the hidden codes (B, H, W): see `masked.terms`.
    """
    codes = codes.long()
    if given and given[0].dtype == torch.bool:
        return masked.terms(model, codes, labels, *given)
    return {"nll": cross_entropy(model(codes, labels, *(grid.long() for grid in given)).float(), codes)}


def summarise(totals: dict[str, Tensor], positions: int) -> dict[str, float]:
    """A split's negative log-likelihood from its sums: in nats per code, and in bits per image of `positions` codes. Of
    a masked prior: see `masked.summarise`.
    """
    if "hidden" in totals:
        return masked.summarise(totals)
    nll = means(totals)["nll"]
    return {"nll": nll, "bits_per_image": nll * positions / math.log(2)}


def fit_to(args: argparse.Namespace, count: int, positions: int) -> None:
    """Set the constants that are "auto" from PRIOR, the number of training images and the codes of an image."""
    transformer = args.PRIOR in ("transformer", "masked")
    auto = {"BATCH_SIZE": min(count, max(4, min(32, 2048 // positions))),
            "HIDDEN": 96 if transformer and positions > 64 else 64,
            "LAYERS": 4 if transformer else 6, "OPTIMIZER": "muon" if transformer else "adam"}
    for name, value in auto.items():
        if getattr(args, name) == "auto":
            setattr(args, name, value)
    if args.EPOCHS == "auto":
        steps = min(20 * positions, 10**7 // (args.BATCH_SIZE * positions))
        epochs = dataset.auto_epochs(3, steps, math.ceil(count / args.BATCH_SIZE))
        args.EPOCHS = min(epochs, 10) if args.AUGMENT == "none" else epochs  # after 10 it learns the images by heart


def last_layer(model: nn.Module) -> nn.Module:
    """The layer of a prior that makes the logits."""
    return [module for module in model.head.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]


@torch.no_grad()
def start_from_codebook(model: nn.Module, vectors: Tensor) -> None:
    """Start the embeddings of the codes, and the weights of their logits, as random projections of their vectors
    (K, D): codes that decode to similar patches are then similar to the prior. The scale of the weights stays.
    """
    centred = (vectors - vectors.mean(0)).cpu()
    for weight in (model.embedding.weight[:len(vectors)], last_layer(model).weight):  # a masked prior embeds one more
        projected = centred @ torch.randn(centred.shape[1], weight.shape[1])
        weight.copy_((projected * (weight.std() / projected.std().clamp_min(1e-6))).view_as(weight))


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimiser of a prior; under Muon, Adam has the embeddings and the layer that makes logits."""
    if args.OPTIMIZER == "adam":
        return AdamW(model.parameters(), args.LEARNING_RATE, BETAS, args.WEIGHT_DECAY)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return Muon(model.parameters(), args.LEARNING_RATE, betas=BETAS, weight_decay=args.WEIGHT_DECAY,
                adam=[*tables, last_layer(model).weight])


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if device.type == "cpu" and args.PRIOR != "pixelcnn" and args.PRECISION == "auto":
        args.PRECISION = "float32"  # on CPUs the gradient of torch's attention takes longer in bfloat16
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device, memory_format=torch.channels_last)
    args = checkpoint.fill(args, stored)
    levels = ["coarse", "fine"][-vqvae.config.levels:]
    if args.LEVEL not in ("all", *levels):
        raise UserError(f"LEVEL (--level) is {args.LEVEL!r}, but vqvae.pt has one level of codes: leave it at all")
    if args.PRIOR == "masked" and len(levels) > 1:
        raise UserError('PRIOR (--prior) of "masked" takes one level of codes, and vqvae.pt has two: choose another')
    if devices.is_main() and checkpoint.unfinished(stored):
        print("vqvae.pt is of a training that was stopped: if that goes on, this prior will not fit it any more",
              file=sys.stderr)
    lock, data = begin(args, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    splits = ["validation", "test"] if args.AUGMENT != "none" else ["train", "validation", "test"]
    encoded = {split: encode(vqvae, getattr(data, split).images) for split in splits}
    for level, name in enumerate(levels):
        if args.LEVEL in ("all", name):
            if len(levels) > 1 and devices.is_main():
                print(f"the prior of the {name} codes:")
            train_level(argparse.Namespace(**vars(args)), level, data, encoded, vqvae, stored)
    lock.release()


def train_level(args: argparse.Namespace, level: int, data: dataset.Data, encoded: dict[str, list[Tensor]],
                vqvae: VQVAE, stored: dict) -> None:
    """Train the prior of a level of codes, given those of the level before it. stored: the checkpoint of the VQ-VAE;
    encoded: the codes of each split by name, without that of the training split under AUGMENT.
    """
    device = next(vqvae.parameters()).device
    torch.manual_seed(args.SEED)  # as if this level alone was trained

    def given(codes: list[Tensor]) -> list[Tensor]:
        """The level's codes, and those that it is given, on the device if that has room."""
        return [dataset.place(grids, device) for grids in reversed(codes[max(0, level - 1):level + 1])]

    train = given(encoded["train"]) if args.AUGMENT == "none" else []
    (validation, *validation_given), (test, *test_given) = (given(encoded[split]) for split in ("validation", "test"))
    train_labels, validation_labels, test_labels = (dataset.place(split.labels, device) for split in data[:3])
    num_codes, num_classes = vqvae.config.num_codes, len(data.class_names)
    count, positions, grid = len(data.train.images), validation[0].numel(), validation.shape[1:]
    both_sides = args.PRIOR == "masked"
    loss, panels, line = BOTH_SIDES if both_sides else LIKELIHOOD
    if both_sides:  # beside the codes of a split: which are hidden
        validation_given, test_given = ([dataset.place(masked.fixed_masks(len(codes), *grid), device)]
                                        for codes in (validation, test))
    fit_to(args, count, positions)
    network, config = PRIORS[args.PRIOR]
    model = network(configure(config, args, num_codes=num_codes, num_classes=num_classes,
                              coarse_codes=num_codes if level else 0))
    start_from_codebook(model, vqvae.quantizers[level].vectors())
    model.to(device, memory_format=torch.channels_last)
    fast.speed_up(model)
    optimizer = make_optimizer(model, args)
    stage = checkpoint.prior_stages(args.PRIOR, vqvae.config.levels)[level]
    run = Run(args, stage, model, optimizer, count, f"validation_{loss}", panels, line=line, average=args.AVERAGE,
              data=stored["data"] | {"dataset": args.DATASET, "class_names": data.class_names,
                                     "class_counts": data.train.labels.bincount(minlength=num_classes).tolist()},
              grid=list(grid), vqvae=checkpoint.fingerprint(stored["model"]),
              images=dataset.digest(data.train))
    # samples are drawn of the classes in turn, those of fine codes given the coarse ones of validation images
    most = 64
    shown = [validation_labels, *validation_given] if level else [torch.arange(most) % max(1, num_classes)]
    shown = [part[:most].cpu() for part in shown]
    stepped = run.prepare()
    if args.DROPOUT and devices.world() > 1:  # each process drops activations of its own
        steps = args.SEED * 1_000_003 + run.epoch * run.steps + run.done
        torch.manual_seed((steps * devices.world() + devices.rank()) % 2**63)

    while run.epoch < args.EPOCHS:
        if args.AUGMENT != "none":
            train = given(augmented_codes(vqvae, data.train.images, args.AUGMENT, args.SEED, run.epoch))
            devices.wait()  # another process may take longer to encode
        for labels, codes, *more in run.batches(train_labels, *train):
            no_class = devices.share(torch.rand(run.batch) < args.CLASS_DROPOUT).to(device)
            if both_sides:
                more = [devices.share(masked.random_masks(run.batch, *grid)).to(device)]
            with run.autocast():
                batch = terms(stepped, codes, labels.masked_fill(no_class, num_classes), *more)
            run.step(batch[loss], len(codes), batch)
        last = level == vqvae.config.levels - 1  # coarse codes alone make no image
        pictured = last and args.SAMPLE_EVERY and (run.epoch + 1) % args.SAMPLE_EVERY == 0
        path = Path(args.OUTPUT_DIR) / "samples" / f"{args.PRIOR}_epoch_{run.epoch + 1:03d}.png"
        sums = sum_over(terms, run.kept, args.BATCH_SIZE, validation, validation_labels, *validation_given)
        run.end_epoch(summarise(over_processes(run.totals), positions), summarise(sums, positions),
                      draw=(lambda: save_samples(run.kept, vqvae, stored, args, path, *shown)) if pictured else None)

    model.load_state_dict(run.best)
    sums = sum_over(terms, model, args.BATCH_SIZE, test, test_labels, *test_given)
    uniform = math.log2(num_codes) * (1 if both_sides else positions)
    run.finish(summarise(sums, positions), f"; uniform codes: {uniform:.1f}")


def augmented_codes(vqvae: VQVAE, images: Tensor, how: str, seed: int, epoch: int) -> list[Tensor]:
    """The codes of uint8 images as `dataset.augment` changes them, by a chance of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return encode(vqvae, images, lambda batch: dataset.augment(batch, how, generator))


@torch.no_grad()
def save_samples(model: nn.Module, vqvae: VQVAE, stored: dict, args: argparse.Namespace, path: Path, labels: Tensor,
                 *coarse: Tensor) -> None:
    """Write a grid of samples of classes `labels` (N,), given the coarse codes (N, H, W) if there are any."""
    size = stored["data"]["height"], stored["data"]["width"]
    given = [grids.long() for grids in coarse]
    drawn = draw_grids([model.eval()], labels, vqvae.grids(*size)[-1:], args.SEED, args.BATCH_SIZE,
                       coarse=given[0] if given else None)
    codes = [*given, torch.cat([fine for (fine,) in drawn]).cpu()]
    device = next(vqvae.parameters()).device
    figures.save_grid(to_images(vqvae, [grids.to(device) for grids in codes], *size), path)


if __name__ == "__main__":
    run_script(main, globals())
