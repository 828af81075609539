"""Make new images: draw grids of codes from a prior, decode them with the VQ-VAE.

Reads `vqvae.pt` and a prior, such as `pixelcnn.pt`, from OUTPUT_DIR; writes `sample_0.png` ... and the grid
`samples.png` there.
Sample i depends on SEED and i alone, not on how many are drawn.
"""
import argparse
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import devices
import figures
from cli import UserError
from cli import run as run_script
from sampler import make_sampler, uniforms

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as pixelcnn.pt
PRIOR = None              # the prior to draw from; None: the one there, or of several that of best validation loss
NUM_SAMPLES = 100         # images to make
TEMPERATURE = 1.0         # divides the logits: below 1 plays safe, above 1 is bolder; 0: always the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = 0.9               # draw among the fewest codes whose probabilities reach p together; 1: the model as it is
CLASS_LABEL = -1          # the class to draw; -1: the classes in turn, -2: no class given
SEED = 0                  # of the draws: the same seed gives the same images
BATCH_SIZE = 64           # grids drawn at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    stored = checkpoint.load(args.OUTPUT_DIR, "vqvae")
    vqvae = checkpoint.build(stored).to(device)
    prior, model = checkpoint.load_prior(args.OUTPUT_DIR, stored, args.PRIOR)
    model.to(device)
    classes = model.num_classes
    if args.CLASS_LABEL >= classes:
        there = f"0 to {classes - 1} ({', '.join(prior['data']['class_names'])})" if classes else "none"
        raise UserError(f"CLASS_LABEL (--class-label): there is no class {args.CLASS_LABEL}; there are {there}")
    numbers = torch.arange(args.NUM_SAMPLES)
    labels = numbers % max(1, classes) if args.CLASS_LABEL == -1 else \
        torch.full_like(numbers, classes if args.CLASS_LABEL == -2 else args.CLASS_LABEL)
    height, width = prior["grid"]
    batch_size = min(args.BATCH_SIZE, args.NUM_SAMPLES)  # for any number of processes: rounding depends on it
    sampler = make_sampler(model, batch_size, width, args.TEMPERATURE, args.TOP_K, args.TOP_P)
    output = Path(args.OUTPUT_DIR)
    batches = devices.parts(numbers, batch_size)
    with tqdm(desc="sampling", total=len(batches) * height, unit="row", leave=False,
              disable=not devices.is_main()) as bar:
        images = []
        for part in batches:
            chance = uniforms(args.SEED, int(part[0]), len(part), height, width)
            codes = sampler(labels[part], chance, on_row=bar.update)
            images.append(vqvae.decode(codes, stored["data"]["height"], stored["data"]["width"]))
    shape = (0, *(stored["data"][name] for name in ("channels", "height", "width")))
    images = torch.cat([torch.empty(shape, device=device), *images])
    devices.wait()  # one of them may have had a batch more
    images = devices.gather(images, args.NUM_SAMPLES)
    if devices.is_main():
        for number, image in enumerate(images):
            figures.save_image(image, output / f"sample_{number}.png")
        columns = classes if args.CLASS_LABEL == -1 and 1 < classes <= 20 else 0
        figures.save_grid(images, output / "samples.png", columns)
        print(f"wrote {args.NUM_SAMPLES} samples of {prior['stage']}.pt to {output / 'sample_0.png'} ... and the grid "
              f"{output / 'samples.png'}")


if __name__ == "__main__":
    run_script(main, globals())
