"""Train a VAE with the encoder and decoder of a run's VQ-VAE, on the same images: `vqvae.pt` in, `vae.pt` out.

It is the baseline for the VQ-VAE with its prior: see vae.py. After every epoch OUTPUT_DIR holds a checkpoint to
continue from, the history as a table, its curves, and grids of reconstructions and samples; at the end also
`vae_comparison.png`, reconstructions and samples of the VAE and the VQ-VAE beside each other.
"""
import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import checkpoint
import dataset
import devices
import figures
from cli import UserError
from cli import run as run_script
from decode import Reading
from files import lock_run
from modules import VQVAE, psnr
from sampler import make_sampler, uniforms
from training import AdamW, Run, should_compile
from vae import VAE, distortion, kl

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt
DATASET = None            # the images to learn; None: those that the VQ-VAE was trained on
DATA_DIR = None           # where data sets are kept, or downloaded to
LIMIT = None              # use only the first N images of the training and of the test part; 0: all
EPOCHS = 4                # passes over the training images
BATCH_SIZE = 64           # images a step, over all processes together
LEARNING_RATE = 2e-3      # the highest, of Adam; it rises briefly and then falls to 0
SEED = 0                  # of the weights, the order of the images and the draws of the latent
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
LATENT_DIM = 20           # size of the Gaussian latent z; it sets how many bits z can carry, see vae.py
BETA = 1.0                # weight of the KL term; 1: the bound on the likelihood, above: fewer bits and more error
SAVE_EVERY = 600          # seconds between checkpoints within an epoch; there is one after each epoch anyway
RESUME = "auto"           # "auto" continues an unfinished run; "never" starts over
OVERWRITE = False         # let RESUME = "never" replace a finished run
COMPILE = "auto"          # torch.compile: "yes", "no", or "auto": for long runs on CUDA, where its start pays off
TENSORBOARD = False       # write event files for TensorBoard as well

PANELS = {"reconstruction MSE": ["train_mse", "validation_mse"],
          "rate: KL (bits per image)": ["train_kl_bits", "validation_kl_bits"],
          "loss (nats per image)": ["train_loss", "validation_loss"]}
SIZES = ["channels", "hidden", "residual_blocks", "residual_hidden", "downsample", "code_dim"]  # taken from vqvae.pt


def metrics(totals: dict[str, Tensor], pixels: int, beta: float) -> dict[str, float]:
    """A split's metrics from its sums, all with z drawn: MSE over pixels in [0, 1] and its PSNR in dB, the rate in
    bits per image, and the loss with the variance that is best for the split: the negative ELBO where beta is 1.
    """
    totals = {name: devices.all_sum(total.clone()) for name, total in totals.items()}
    mse, rate = (totals[name].double().cpu() / totals["count"].cpu() for name in ("mse", "kl"))
    loss = distortion(mse, mse, pixels) + beta * rate
    return {"mse": mse.item(), "psnr": psnr(mse.item()), "kl_bits": rate.item() / math.log(2),
            "loss": loss.item()}


@torch.no_grad()
def evaluate(model: VAE, images: Tensor, batch_size: int, beta: float) -> dict[str, float]:
    """The metrics of uint8 images (N, C, H, W), always with the same draws of z; each process does its share."""
    model.eval()
    device = next(model.parameters()).device
    noise = torch.randn(len(images), model.config["latent_dim"], generator=torch.Generator().manual_seed(0))
    totals = {name: torch.zeros((), device=device) for name in ("count", "mse", "kl")}
    indices = devices.parts(torch.arange(len(images)), batch_size)
    for part, drawn in dataset.batches(indices, device, images, noise):
        batch = dataset.to_float(part)
        output = model(batch, drawn)
        totals["count"] += len(batch)
        totals["mse"] += (output.images - batch).square().mean() * len(batch)
        totals["kl"] += kl(output.mean, output.log_variance).sum()
    return metrics(totals, images[0].numel(), beta)


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device)
    args = checkpoint.fill(args, stored)
    held = lock_run(args.OUTPUT_DIR) if devices.is_main() else None
    torch.manual_seed(args.SEED)
    with devices.first_on_machine():
        data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, Reading(**stored["data"]["reading"]))
    checkpoint.check_images(stored, data.train.images)
    train, validation, test = (split.to(device) for split in data[:3])
    height, width = train.images.shape[2:]
    pixels = train.images[0].numel()
    sizes = {name: vqvae.config[name] for name in SIZES}
    model = VAE(**sizes, latent_dim=args.LATENT_DIM, height=height, width=width)
    model.to(device, memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters(), args.LEARNING_RATE)
    run = Run(args, "vae", model, optimizer, len(train.images), "validation_loss", PANELS,
              data=stored["data"] | {"dataset": args.DATASET, "class_names": data.class_names},
              sizes=sizes, images=dataset.digest(data.train))
    if should_compile(args, device, run.steps):
        model.compile()
    stepped = DistributedDataParallel(model) if devices.world() > 1 else model
    output = Path(args.OUTPUT_DIR)
    shown = torch.randperm(len(validation.images), generator=torch.Generator().manual_seed(0))[:32]

    while run.epoch < args.EPOCHS:
        model.train()
        with run.progress() as bar:
            for count, (images,) in run.batches(train.images):
                images = dataset.to_float(images)
                noise = devices.share(torch.randn(count, args.LATENT_DIM)).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    out = stepped(images, noise)
                mse = (out.images.float() - images).square().mean()
                rate = kl(out.mean, out.log_variance).mean()
                # the best variance for the whole batch ([2] in vae.py), a constant to the gradient
                variance = devices.all_sum(mse.detach() * len(images)) / count
                loss = distortion(mse, variance, pixels) + args.BETA * rate
                # every image counts the same, also where the processes' shares differ by one
                optimizer.zero_grad()
                (loss * len(images) * devices.world() / count).backward()
                optimizer.step()
                sofar = run.add(loss, len(images), mse=mse * len(images), kl=rate * len(images))
                bar.update()
                if sofar:
                    bar.set_postfix(mse=f"{sofar['mse']:.5f}", bits=f"{sofar['kl'] / math.log(2):.1f}")
        row = {f"train_{name}": value for name, value in metrics(run.totals, pixels, args.BETA).items()}
        row |= {f"validation_{name}": value
                for name, value in evaluate(model, validation.images, args.BATCH_SIZE, args.BETA).items()}
        if devices.is_main():
            (images,), = dataset.batches([shown], device, validation.images)
            save_pictures(model, images, args.SEED, output, f"epoch_{run.epoch + 1:03d}.png")
            print(f"epoch {run.epoch + 1}/{args.EPOCHS}: train MSE {row['train_mse']:.5f}, validation MSE "
                  f"{row['validation_mse']:.5f}, PSNR {row['validation_psnr']:.2f} dB, rate "
                  f"{row['validation_kl_bits']:.1f} bits per image, loss {row['validation_loss']:.1f} nats per image")
        run.end_epoch(row)

    model.load_state_dict(run.best)
    result = evaluate(model, test.images, args.BATCH_SIZE, args.BETA)
    if devices.is_main():
        (images,), = dataset.batches([torch.arange(len(test.images))[:10]], device, test.images)
        save_comparison(model, vqvae, stored, images, args)
        print(f"test: MSE {result['mse']:.5f}, PSNR {result['psnr']:.2f} dB, rate {result['kl_bits']:.1f} bits per "
              f"image, loss {result['loss']:.1f} nats per image")
        print(f"wrote {run.path}, its history, curves and pictures beside it, and {output / 'vae_comparison.png'}")
    if held:
        held.release()


@torch.no_grad()
def save_pictures(model: VAE, images: Tensor, seed: int, output: Path, name: str) -> None:
    """Write uint8 images over their reconstructions, sixteen a row, and 64 samples, into a directory for either."""
    originals = dataset.to_float(images)
    copies = model.eval()(originals).images
    figures.save_pairs(originals, copies, output / "vae_reconstructions" / name, columns=16)
    figures.save_grid(model.decode(latents(model, 64, seed)), output / "vae_samples" / name)


def latents(model: VAE, count: int, seed: int) -> Tensor:
    """(count, latent_dim) draws from the prior, on the model's device."""
    drawn = torch.randn(count, model.config["latent_dim"], generator=torch.Generator().manual_seed(seed))
    return drawn.to(next(model.parameters()).device)


@torch.no_grad()
def save_comparison(model: VAE, vqvae: VQVAE, stored: dict, images: Tensor, args: argparse.Namespace) -> None:
    """Write uint8 images with the reconstructions of both, and below them as many samples of both, the VQ-VAE's from
    the prior in the directory. Without one that row is left out, with a line that says so.
    """
    originals = dataset.to_float(images)
    height, width = images.shape[2:]
    rows = {"images of the test split": originals,
            "reconstructed by the VQ-VAE": vqvae.decode(vqvae.encode(originals), height, width),
            "reconstructed by the VAE": model(originals).images,
            "samples of the VAE": model.decode(latents(model, len(images), args.SEED))}
    try:
        prior, network = checkpoint.load_prior(args.OUTPUT_DIR, stored)
        network.to(images.device)
        labels = torch.arange(len(images)) % max(1, network.num_classes)
        codes = make_sampler(network, len(images), prior["grid"][1])(
            labels, uniforms(args.SEED, 0, len(images), *prior["grid"]))
        rows[f"samples of the VQ-VAE and its {prior['stage']}"] = vqvae.decode(codes, height, width)
    except UserError as error:
        print(f"no samples of the VQ-VAE in vae_comparison.png: {error}")
    figures.save_strips(rows, "The VAE and the VQ-VAE", Path(args.OUTPUT_DIR) / "vae_comparison.png")


if __name__ == "__main__":
    run_script(main, globals())
