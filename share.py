"""Share a run: its weights alone, in a directory for others to draw from.

Reads `vqvae.pt`, every prior over its codes, such as `transformer.pt`, and `decoder.pt` and `vae.pt`, where they are
there, from OUTPUT_DIR. Writes the same files into SHARED_DIR, without what only continuing a training needs: optimiser,
last weights, random generators. They hold no path of this machine.

With HALF, weights are rounded to float16 where that changes them by less than a thousandth; they are read as float32. A
prior that can score images also gets what score.py compares with, such as the bits of the validation images, for which
the data set of the training is loaded.
"""
import running.start  # noqa: F401

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dataset
from judging.expected import Networks, class_shares, code, is_kept, keep, lacks_for_scores, validation_images
from judging.vae import VAE, VAEConfig
from priors import runs
from priors.table import PRIORS
from running import devices
from running.cli import UserError
from running.cli import run as run_script
from training import checkpoint

OUTPUT_DIR = "output"     # the run's directory, with its vqvae.pt and its priors
SHARED_DIR = "shared"     # where the weights are written: a directory of their own
HALF = True               # weights as float16, half the size; False: float32, to the bit those of the run
DATASET = None            # the data set of the training, where it lies now; None: where it lay then
DATA_DIR = None           # where data sets are kept, or downloaded to; None: as in the training
OVERWRITE = False         # replace the shared checkpoints that SHARED_DIR holds
BATCH_SIZE = 64           # validation images at once
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"

STAGES = [*runs.STAGES, "vae"]
PLACES = ("DATA_DIR", "OUTPUT_DIR")   # constants of a training that mean nothing elsewhere


def read_run(output_dir: str) -> dict[str, dict[str, Any]]:
    """The checkpoints of a run by stage. UserError if one is damaged, of a training that has not finished, or of a
    prior or a decoder that learnt the codes of another VQ-VAE.
    """
    found = {"vqvae": runs.load_vqvae(output_dir, finished=False)[0]}
    if checkpoint.path_of(output_dir, "decoder").exists():
        found["decoder"] = runs.load_decoder(output_dir, found["vqvae"])[0]
    for name in runs.priors_there(output_dir):
        found[name] = runs.load_prior(output_dir, found["vqvae"], name)[0]
    if checkpoint.path_of(output_dir, "vae").exists():
        found["vae"] = checkpoint.load(output_dir, "vae")
        checkpoint.build(found["vae"], VAE, VAEConfig)
    for stage, stored in found.items():
        if checkpoint.unfinished(stored):
            raise UserError(f"{checkpoint.path_of(output_dir, stage)} is of a training that has not finished: continue "
                            f"it by the command that began it, or move that file away")
    return found


def name_alone(name: str) -> str:
    """A data set's name as it is; of a folder's path the last part, which must not read as a data set's name."""
    known = dataset.NAMES
    last = Path(os.path.abspath(name)).name or "images"
    return name if name in known else f"./{last}" if last in known else last


def weights_alone(stored: dict[str, Any], half: bool) -> dict[str, Any]:
    """A checkpoint without what only continuing its training needs, and without paths; half: with rounded weights."""
    state = stored.get("training")
    constants = {name: name_alone(value) if name == "DATASET" else value
                 for name, value in checkpoint.constants(stored).items() if name not in PLACES}
    history = state.get("history", []) if isinstance(state, dict) else []
    return stored | {
        "data": stored["data"] | {"dataset": name_alone(stored["data"]["dataset"]), "data_dir": "data"},
        "model": {name: rounded(weight) if half else weight for name, weight in stored["model"].items()},
        "training": {"constants": constants, "history": history, "finished": True}, "shared": True}


def rounded(weight: Tensor) -> Tensor:
    """A float32 tensor with its values rounded to those of float16, or as it is where they are out of its range: where
    that changes it, as a vector, by more than 2^-10 of its length; rounding a number alone changes it by up to 2^-11.
    """
    near = weight.half().float()
    return near if (near - weight).norm() <= 2**-10 * weight.norm() else weight


def packed(weight: Tensor) -> Tensor:
    """A tensor as float16 if that holds the same values."""
    half = weight.half()
    return half if torch.equal(half.float(), weight) else weight


def add_expected(contents: dict[str, dict[str, Any]], run: dict[str, Any], args: argparse.Namespace,
                 device: torch.device) -> None:
    """Give every prior that can score images what score.py compares with, or print that the data set of the training
    cannot be loaded. run: the checkpoint of the VQ-VAE, which says where the data set lay.
    """
    scoring = [stored for stage, stored in contents.items()
               if stage in PRIORS and not is_kept(stored) and not lacks_for_scores(stored)]
    for stored in scoring:
        stored.pop("expected", None)  # of an earlier version
    if not scoring:
        return
    try:
        images = validation_images(checkpoint.fill(args, run), run)
    except UserError as error:
        print(f"score.py will ask for the data set where these weights are used: {error}", file=sys.stderr)
        return
    vqvae = runs.build(contents["vqvae"]).to(device)
    for stored in scoring:
        networks = Networks(vqvae, runs.build(stored).to(device), class_shares(stored), device, args.BATCH_SIZE)
        coded = code(networks, images, f"scoring by {stored['stage']}.pt")
        stored["expected"] = keep(coded, vqvae.config.num_codes)


def replaceable(args: argparse.Namespace) -> list[Path]:
    """The checkpoints in SHARED_DIR. UserError if there are any without OVERWRITE, or one of a training."""
    paths = {stage: path for stage in STAGES if (path := checkpoint.path_of(args.SHARED_DIR, stage)).exists()}
    for stage, path in paths.items():
        if not args.OVERWRITE:
            raise UserError(f"SHARED_DIR (--shared-dir): {args.SHARED_DIR} holds {path.name}: choose another "
                            f"directory, or add --overwrite to replace its checkpoints")
        if not checkpoint.is_shared(checkpoint.load(args.SHARED_DIR, stage)):
            raise UserError(f"SHARED_DIR (--shared-dir): {path} is of a training, which --overwrite does not replace: "
                            f"choose another directory")
    return list(paths.values())


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    if not devices.is_main():
        return
    if Path(args.SHARED_DIR).resolve() == Path(args.OUTPUT_DIR).resolve():
        raise UserError(f"SHARED_DIR (--shared-dir) is the run's directory itself, {args.OUTPUT_DIR}: name another")
    found = read_run(args.OUTPUT_DIR)
    before = replaceable(args)
    contents = {stage: weights_alone(stored, args.HALF) for stage, stored in found.items()}
    known = checkpoint.fingerprint(contents["vqvae"]["model"])
    for stored in contents.values():
        if "vqvae" in stored:  # a prior or a decoder: it belongs to the rounded weights now
            stored["vqvae"] = known
    add_expected(contents, found["vqvae"], args, device)
    for path in before:
        path.unlink()  # also those that this run has not
    for stage, stored in contents.items():
        del stored["format"], stored["version"], stored["stage"]
        if args.HALF:
            stored["model"] = {name: packed(weight) for name, weight in stored["model"].items()}
        path, whole = checkpoint.save(args.SHARED_DIR, stage, **stored), checkpoint.path_of(args.OUTPUT_DIR, stage)
        sizes = [f"{file.stat().st_size / 1e6:.2f} MB" for file in (path, whole)]
        print(f"wrote {path}: {sizes[0]}, {whole} has {sizes[1]}")


if __name__ == "__main__":
    run_script(main, globals())
