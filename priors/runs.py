"""What lies in a run's directory: the VQ-VAE, its priors, and which classes and guidance these can be drawn with."""
import argparse
import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from modules import VQVAE, VQVAEConfig, grid_size, make_decoder
from priors.table import PRIORS
from running import devices
from running.cli import UserError
from training import checkpoint
from training.quantizers import make_vqvae

GUIDED = 1.25          # what GUIDANCE of "auto" is where a draw is given a class
UNGUIDED_TOP_P = 0.95  # what TOP_P of "auto" is without guidance
STAGES = ["vqvae", "decoder", *PRIORS]  # checkpoints, by their file's name


class Decoder(nn.Module):
    """The decoder of a VQ-VAE of these sizes, by itself, as train_decoder.py finishes it."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config, self.layers = config, make_decoder(config)

    def forward(self, z_q: Tensor) -> Tensor:
        """What `VectorQuantizer.look_up` gives (B, D, h, w) to images (B, C, H, W), not cropped."""
        return self.layers(z_q)


NETWORKS = {"vqvae": (make_vqvae, VQVAEConfig), "decoder": (Decoder, VQVAEConfig)}


def build(stored: dict[str, Any]) -> nn.Module:
    """The network of the checkpoint of a VQ-VAE, its finished decoder or a prior: see `checkpoint.build`."""
    stage = stored["stage"]
    return checkpoint.build(stored, *(NETWORKS.get(stage) or PRIORS[stage][:2]))


def load_vqvae(output_dir: str, for_training: bool = False, finished: bool = True) -> tuple[dict[str, Any], VQVAE]:
    """The checkpoint of a run's VQ-VAE, and the network in eval mode, on the CPU. UserError: see `checkpoint.load`.

    finished: where decoder.pt lies beside it, of this vqvae.pt, the network has that decoder. for_training: a stage is
    about to learn its codes; a line says so if the VQ-VAE's own training has not finished.
    """
    stored = checkpoint.load(output_dir, "vqvae")
    if for_training and devices.is_main() and checkpoint.unfinished(stored):
        print("vqvae.pt is of a training that was stopped: if it continues, what is trained now no longer fits",
              file=sys.stderr)
    vqvae = build(stored)
    if finished and checkpoint.path_of(output_dir, "decoder").exists():
        try:
            vqvae.decoder = load_decoder(output_dir, stored)[1].layers
        except UserError as error:
            if devices.is_main():
                print(f"left out: {error}", file=sys.stderr)
    return stored, vqvae


def load_decoder(output_dir: str, vqvae: dict[str, Any]) -> tuple[dict[str, Any], Decoder]:
    """The checkpoint of a run's decoder, and the network. vqvae: the checkpoint that it must belong to. UserError if it
    does not, or if its training has not finished.
    """
    stored = checkpoint.load(output_dir, "decoder")
    decoder = build(stored)
    if checkpoint.unfinished(stored):
        raise UserError(f"decoder.pt is of a training that has not finished: continue it by the command that began it, "
                        f"{checkpoint.command(output_dir, 'decoder')}, or move that file away")
    if stored.get("vqvae") != checkpoint.fingerprint(vqvae["model"]) or stored["config"] != vqvae["config"]:
        raise UserError(f"decoder.pt decodes the codes of another vqvae.pt than the one beside it: train it again by "
                        f"{checkpoint.command(output_dir, 'decoder', '--resume', 'never', '--overwrite')}")
    return stored, decoder


def open_run(args: argparse.Namespace, device: torch.device) -> tuple[argparse.Namespace, dict[str, Any], VQVAE]:
    """The VQ-VAE in PRETRAINED or OUTPUT_DIR: the constants, those of None filled from its checkpoint; the checkpoint;
    and the network in eval mode on the device. UserError: see `checkpoint.load`.
    """
    stored, vqvae = load_vqvae(checkpoint.weights_dir(args))
    return checkpoint.fill(args, stored), stored, vqvae.to(device)


def load_priors(output_dir: str, vqvae: dict[str, Any]) -> list[tuple[dict[str, Any], nn.Module]]:
    """Read the priors of a run's directory, each as `load_prior` does. Any that is damaged or learnt the codes of
    another VQ-VAE than the checkpoint `vqvae`, already built, is left out with a line that says so.
    """
    found = []
    for name in priors_there(output_dir):
        try:
            found.append(load_prior(output_dir, vqvae, name))
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def load_prior(output_dir: str, vqvae: dict[str, Any], name: str | None = None, both_sides: bool = False
               ) -> tuple[dict[str, Any], nn.Module]:
    """Read the prior `name` of a run's directory, or the one there: of several, that of the best validation loss.

    A masked prior has no likelihood to be compared by: of several priors it is taken where none else is left, or where
    codes are given on both sides of those to draw (both_sides), of which it alone makes full use.

    vqvae: the checkpoint, already built, whose codes it must have learnt: those of another one mean nothing to it.
    Returns the checkpoint and the network, as `build` makes it. UserError if there is none that learnt these codes.
    """
    def again(stage: str) -> str:
        return checkpoint.command(output_dir, stage, "--resume", "never", "--overwrite")

    there = priors_there(output_dir)
    if name is None and len(there) > 1:
        priors = load_priors(output_dir, vqvae)
        if not priors:
            raise UserError(f"no prior in {output_dir} is left: train one with {again(checkpoint.DEFAULT_PRIOR)}")
        return min(priors, key=lambda prior: ((prior[0]["stage"] == "masked") != both_sides, validation_nll(prior[0])))
    stage = name or (there or [checkpoint.DEFAULT_PRIOR])[0]
    prior = checkpoint.load(output_dir, stage)
    network = build(prior)
    data, config, sizes = vqvae["data"], vqvae["config"], prior["config"]
    grid = list(grid_size(data["height"], data["width"], config["downsample"]))
    learnt = prior.get("vqvae"), prior.get("grid"), sizes["num_codes"], sizes["num_classes"]
    if learnt != (checkpoint.fingerprint(vqvae["model"]), grid, config["num_codes"], len(prior["data"]["class_names"])):
        raise UserError(f"{stage}.pt learnt the codes of another vqvae.pt than the one beside it: train it again "
                        f"with {again(stage)}, or put its own vqvae.pt back")
    return prior, network


def priors_there(output_dir: str) -> list[str]:
    """The names of the priors in a run's directory."""
    return [name for name in PRIORS if checkpoint.path_of(output_dir, name).exists()]


def validation_nll(prior: dict[str, Any]) -> float:
    """The best negative log-likelihood of a prior on the validation split, in nats per code; infinity if unknown."""
    try:
        return min(float(row["validation_nll"]) for row in prior["training"]["history"] if type(row) is dict)
    except (LookupError, TypeError, ValueError, OverflowError):
        return math.inf


def choose_classes(asked: str, prior: dict[str, Any]) -> tuple[list[int], str]:
    """The classes to draw in turn, and what to say of them. prior: its checkpoint. UserError if there is no such class.

    A class without a training image is drawn only if it is asked for: the prior has not learnt it.
    """
    names = prior["data"]["class_names"]
    if asked == "none" or (asked == "all" and not names):
        return [len(names)], "without a class" if names else ""
    if asked == "all":
        counts = class_counts(prior)
        missing = ", ".join(name for name, count in zip(names, counts) if not count)
        return [label for label, count in enumerate(counts) if count], \
            "all classes in turn" + (f" but those without a training image ({missing})" if missing else "")
    number = names.index(asked) if asked in names else int(asked) if asked.isdecimal() else -1
    if not 0 <= number < len(names):
        there = f"0 to {len(names) - 1} ({', '.join(names)})" if names else "none"
        raise UserError(f"CLASS_LABEL (--class-label): there is no class {asked}; there are {there}")
    return [number], f"of class {number} ({names[number]})"


def class_counts(prior: dict[str, Any]) -> list[int]:
    """The training images of each class that a prior, of which this is the checkpoint, learnt; 1 where it says none."""
    return prior["data"].get("class_counts", [1] * len(prior["data"]["class_names"]))


def class_dropout(prior: dict[str, Any]) -> float | None:
    """The CLASS_DROPOUT that a prior, of which this is the checkpoint, was trained with; None if it does not say."""
    try:
        return float(checkpoint.constants(prior)["CLASS_DROPOUT"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def lacks_for_guidance(prior: dict[str, Any]) -> str:
    """What a prior, of which this is the checkpoint, lacks to be drawn from with guidance, which compares logits given
    a class with logits given none; "" if it has learnt both.
    """
    dropout = class_dropout(prior)
    if not prior["data"]["class_names"]:
        return f"classes, and {prior['stage']}.pt learnt none: leave it at 1"
    if dropout is not None and not 0 < dropout < 1:
        return f"a prior trained with CLASS_DROPOUT above 0 and below 1, and {prior['stage']}.pt had {dropout:g}"
    return ""


def choose_guidance(guidance: float | str, top_p: float | str, prior: dict[str, Any], given: bool = True,
                    remedy: str = "") -> tuple[float, float]:
    """GUIDANCE and TOP_P as numbers. What "auto" means was chosen: docs/LOG.md, "New digits".

    prior: its checkpoint. given: whether the draws are given a class; remedy: how to give one.
    UserError if GUIDANCE is a number other than 1, and cannot be done.
    """
    needs = lacks_for_guidance(prior) or ("" if given else f"a class: {remedy}")
    if guidance == "auto":
        guidance = 1.0 if needs else GUIDED
    elif guidance != 1 and needs:
        raise UserError(f"GUIDANCE (--guidance) of {guidance:g} needs {needs}")
    if top_p == "auto":  # guidance makes unlikely codes rarer by itself
        top_p = 1.0 if guidance > 1 else UNGUIDED_TOP_P
    return guidance, top_p
