"""Make new images: draw grids of codes from a prior, decode them with the VQ-VAE.

Reads `vqvae.pt` and a prior, such as `transformer.pt`, from OUTPUT_DIR or PRETRAINED; writes `sample_0.png`
..., the grid `samples.png` and `samples.json`, what they were drawn with. Sample i depends on SEED and i, not on how
many are drawn. The same command continues where it was stopped; another one removes the samples of the one before.
"""
import running.start  # noqa: F401

import argparse
from pathlib import Path

import torch

from priors import runs
from priors.codes import to_images
from priors.draws import Draw
from priors.sampler import draw_grids
from priors.samples import keep_samples_of, save_kept
from running import devices, figures
from running.cli import Stopped
from running.cli import run as run_script
from running.progress import Bar
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and a prior, such as transformer.pt
PRETRAINED = ""           # directory of the weights; "": OUTPUT_DIR
SAMPLES_DIR = ""          # where the samples are written; "": to OUTPUT_DIR
PRIOR = None              # the prior to draw from; None: the one there, or of several that of best validation loss
NUM_SAMPLES = 100         # images to make
TEMPERATURE = 1.0         # divides the logits: below 1 plays safe, above 1 is bolder; 0: always the likeliest code
TOP_K = 0                 # draw among the k likeliest codes; 0: all
TOP_P = "auto"            # draw among the fewest codes that reach probability p; "auto": 0.95, but 1 with guidance
GUIDANCE = "auto"         # above 1: clearer classes, less variety, twice the time; 1: none; "auto": 1.25 with a class
STEPS = 16                # rounds in which a masked prior draws a grid; 0: one for each code, as other priors draw
CLASS_LABEL = "all"       # the class to draw, by name or number; "all": all in turn; "none": no class given
SEED = 0                  # of the draws: the same seed gives the same images
BATCH_SIZE = 64           # grids drawn at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    weights = checkpoint.weights_dir(args)
    stored, vqvae = runs.load_vqvae(weights)
    prior, model = runs.load_prior(weights, stored, args.PRIOR)
    vqvae.to(device), model.to(device)
    classes, told = runs.choose_classes(args.CLASS_LABEL, prior)
    guidance, top_p = runs.choose_guidance(args.GUIDANCE, args.TOP_P, prior, classes != [model.num_classes],
                                           "choose one by CLASS_LABEL (--class-label)")
    how = Draw(args.TEMPERATURE, args.TOP_K, top_p, guidance, args.STEPS if prior["stage"] == "masked" else 0)
    labels = torch.tensor(classes)[torch.arange(args.NUM_SAMPLES) % len(classes)]
    output = Path(args.SAMPLES_DIR or args.OUTPUT_DIR)
    settings = {name.upper(): value for name, value in how._asdict().items()}
    settings |= {"CLASS_LABEL": args.CLASS_LABEL, "SEED": args.SEED, "prior": prior["stage"],
                 "weights": " ".join(map(checkpoint.fingerprint, (vqvae.decoder.state_dict(), prior["model"])))}
    if devices.is_main():
        keep_samples_of(settings, output, args.NUM_SAMPLES)
    devices.wait()
    parts = torch.arange(args.NUM_SAMPLES).split(args.BATCH_SIZE)[devices.rank()::devices.world()]
    parts = [part for part in parts if not all((output / f"sample_{i}.png").exists() for i in part)]
    size = stored["data"]["height"], stored["data"]["width"]
    grid = vqvae.grid(*size)
    try:
        with Bar(desc="sampling", total=len(parts) * grid[0], unit="row", disable=not devices.is_main()) as bar:
            drawn = draw_grids(model, labels, grid, args.SEED, args.BATCH_SIZE, how, parts=parts, on_row=bar.update)
            for part, codes in zip(parts, drawn):
                for i, image in zip(part, to_images(vqvae, codes, *size)):
                    figures.save_image(image, output / f"sample_{i}.png")
    except Stopped as stop:
        there = len(list(output.glob("sample_*.png")))
        raise Stopped(stop.number, f": {there} of {args.NUM_SAMPLES} samples are in {output}, the same command "
                                   f"continues") from None
    devices.wait()
    if devices.is_main():
        save_kept(output, args.NUM_SAMPLES, prior, classes)
        print(f"wrote {args.NUM_SAMPLES} samples of {prior['stage']}.pt{told and ', ' + told}, to "
              f"{output / 'sample_0.png'} ... and the grid {output / 'samples.png'}")


if __name__ == "__main__":
    run_script(main, globals())
