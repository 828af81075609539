"""Checkpoints: written whole or not at all, and read as untrusted data.

A checkpoint is a dict of tensors, numbers, texts, lists and dicts, saved by `torch.save` and loaded with
`weights_only=True`, so nothing in a file can run. One directory is one run: `vqvae.pt`, and a file for each prior
over its codes, `transformer.pt`, `pixelcnn.pt`, `pixelsnail.pt` and `masked.pt`. With two levels of codes these are of
the fine one, and beside each lies the prior of the coarse one, such as `transformer_coarse.pt`.
"""
import argparse
import hashlib
import io
import math
import shlex
import sys
import zipfile
from collections import OrderedDict
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifier import Classifier, ClassifierConfig
from cli import RULES, Rule, UserError
from decode import Reading
from files import atomic
from modules import VQVAE, VQVAEConfig, grid_sizes
from priors import PRIORS
from vae import VAE, VAEConfig

FORMAT = "vqvae-pixelcnn"
VERSION = 1
IMAGES = ("dataset", "data_dir", "limit", "channels", "height", "width")  # what a checkpoint says of the images
READING = Reading._fields
DEFAULT_PRIOR = "transformer"  # PRIOR of train_pixelcnn.py
GUIDED = 1.25          # what GUIDANCE of "auto" is where a draw is given a class
UNGUIDED_TOP_P = 0.9   # what TOP_P of "auto" is without guidance
# The network of each stage, and the dataclass of its sizes
STAGES = {"vqvae": (VQVAE, VQVAEConfig), **PRIORS, **{f"{name}_coarse": PRIORS[name] for name in PRIORS},
          "vae": (VAE, VAEConfig), "classifier": (Classifier, ClassifierConfig)}


def fingerprint(state: dict[str, Tensor]) -> str:
    """A digest of tensors by name: two networks whose weights have the same one give the same codes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(-1).numpy())
    return digest.hexdigest()


def weights_dir(args: argparse.Namespace) -> str:
    """The directory that a script reads weights from, beside which nothing is written: PRETRAINED, or OUTPUT_DIR."""
    return args.PRETRAINED or args.OUTPUT_DIR


def path_of(output_dir: str, stage: str) -> Path:
    """Where a stage's checkpoint lies in a run's directory."""
    return Path(output_dir) / f"{stage}.pt"


def prior_stages(prior: str, levels: int) -> list[str]:
    """The stages of a prior by name, one for each level of the VQ-VAE, coarse first."""
    return [f"{prior}_coarse", prior][-levels:]


def command(output_dir: str, stage: str, *more: str) -> str:
    """What a user types to make a stage's checkpoint, in backticks; more: further words of it."""
    prior = stage.removesuffix("_coarse")
    script = ["train_pixelcnn.py"] if prior in PRIORS else [f"train_{stage}.py"]
    if prior in PRIORS and prior != DEFAULT_PRIOR:
        script += ["--prior", prior]
    if prior != stage:
        script += ["--level", "coarse"]
    return f"`{shlex.join(['python', *script, '--output-dir', str(output_dir), *more])}`"


def save(output_dir: str, stage: str, config: dict, model: dict[str, Tensor], **more: Any) -> Path:
    """Write a stage's checkpoint: the network's config and weights, and what else the next stage needs."""
    path = path_of(output_dir, stage)
    content = {"format": FORMAT, "version": VERSION, "stage": stage, "config": config, "model": model, **more}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
    return path


def load(output_dir: str, stage: str) -> dict[str, Any]:
    """Read a stage's checkpoint. UserError, in one line, if it is missing or anything but a whole checkpoint.

    Sizes are checked against the file before memory is allocated. Weights that share.py stored as float16 come as the
    float32 that the networks have.
    """
    path = path_of(output_dir, stage)
    if not path.exists():
        raise UserError(f"{path} does not exist: make it with {command(output_dir, stage)}")
    foreign = UserError(f"{path} is damaged or not a checkpoint of this project: "
                        f"delete it and run {command(output_dir, stage)} again")
    if not path.is_file():
        raise foreign
    open(path, "rb").close()  # no permission is not damage: OSError
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:  # nothing packed, nothing larger than the file, no bit flipped
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) \
                    or sum(entry.file_size for entry in entries) > size or archive.testzip() is not None:
                raise foreign
            [pickled] = [entry.file_size for entry in entries if entry.filename.endswith("/data.pkl")]
        content = _plain(torch.load(path, map_location="cpu", mmap=True, weights_only=True), pickled, size)
    except Exception:  # whatever the bytes of a foreign file make the readers raise
        raise foreign from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise foreign
    if content.get("version") != VERSION:
        raise UserError(f"{path} is of version {content.get('version')!r}, this code reads version {VERSION}: "
                        f"train again, or use the code that wrote it")
    if content.get("stage") != stage:
        raise UserError(f"{path} is the checkpoint of the stage {content.get('stage')!r}, not of {stage!r}: "
                        f"put it back as {content.get('stage')}.pt")
    try:
        content["data"]["reading"] = Reading._field_defaults | content["data"]["reading"]  # an older one says less
        for names, place in ((IMAGES, content["data"]), (READING, content["data"]["reading"])):
            for name in names:
                place[name] = RULES[name.upper()].parse(place[name])
        if set(content["data"]["reading"]) != set(READING):
            raise KeyError
        if not all(type(name) is str for name in content["data"]["class_names"]):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not say what images it was trained on: train again") from None
    if isinstance(content.get("model"), dict):
        content["model"] = {name: weight.float() if getattr(weight, "dtype", None) == torch.float16 else weight
                            for name, weight in content["model"].items()}
    return content


def _plain(content: Any, values: int, size: int) -> Any:
    """A copy of what torch.load read: dicts, lists, numbers, texts and dense tensors, and ValueError for more.

    values, size: the most values and the most bytes of tensors that there can be. A list that holds itself, or
    a view that repeats one number to any size, takes no room in a file.
    """
    def copy(value: Any) -> Any:
        nonlocal values, size
        values -= 1
        if type(value) is Tensor and value.device.type == "cpu" and value.layout == torch.strided:
            size -= math.prod(value.shape) * value.itemsize
            if size >= 0:
                return value.detach().clone()
        elif values >= 0:
            if type(value) in (dict, OrderedDict) and all(type(key) in (str, int) for key in value):
                return {key: copy(item) for key, item in value.items()}
            if type(value) in (list, tuple):
                return type(value)(map(copy, value))
            if value is None or type(value) in (bool, int, float, str):
                return value
        raise ValueError("not a plain value, or more of them than the file can hold")

    return copy(content)


def build(content: dict[str, Any], weights: str = "model") -> nn.Module:
    """The network of a checkpoint with the weights stored under `weights`, in eval mode, on the CPU.

    It is laid out without memory first, and takes the stored tensors only if every name and shape fits: sizes are
    checked against the tensors before memory is allocated.
    """
    stage = content["stage"]
    try:
        network_class, config_class = STAGES[stage]
        kinds = {field.name: field.type for field in fields(config_class)}
        config = {name: RULES.get(name.upper(), Rule(kinds[name])).parse(value)
                  for name, value in content["config"].items()}
        with torch.device("meta"):
            network = network_class(config_class(**config))
        layout, state = network.state_dict(), content[weights]
        bad = layout.keys() ^ state.keys() or {
            name for name, tensor in layout.items()
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype)
            or not state[name].isfinite().all()}
        if bad:
            raise UserError(f"the {stage} checkpoint holds weights that are not finite or do not fit its sizes "
                            f"({min(bad)}): train again")
        network.load_state_dict(state, assign=True)
        content["config"] = asdict(network.config)  # with what an older one does not say
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"the {stage} checkpoint describes no network of this code ({error}): train again") from None
    return network.eval()


def fill(args: argparse.Namespace, stored: dict[str, Any]) -> argparse.Namespace:
    """Replace the constants that are None by what the stage before was given; the rest of them stay None.

    So does IMAGE_SIZE, which is not the same for a folder and for a file: see `testset.find`.
    """
    known = {name.upper(): value for name, value in (stored["data"]["reading"] | stored["data"]).items()
             if name != "image_size"}
    return argparse.Namespace(**{name: known.get(name) if value is None else value
                                 for name, value in vars(args).items()})


def unfinished(stored: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a training that was stopped before its end."""
    state = stored.get("training")
    return isinstance(state, dict) and state.get("finished") is False


def is_shared(stored: dict[str, Any]) -> bool:
    """Whether a checkpoint is one of share.py: weights alone, without what continuing a training needs."""
    return stored.get("shared") is True


def constants(stored: dict[str, Any]) -> dict[str, Any]:
    """The constants of a training, as its checkpoint keeps them; an older one may not."""
    state = stored.get("training")
    found = state.get("constants") if isinstance(state, dict) else None
    return found if isinstance(found, dict) else {}


def check_images(stored: dict[str, Any], images: Tensor, remedy: str = "") -> None:
    """UserError unless images (N, C, H, W) have the channels and size that the VQ-VAE was trained on.

    remedy: what to do about it, the end of the line.
    """
    expected = tuple(stored["data"][name] for name in ("channels", "height", "width"))
    if tuple(images.shape[1:]) != expected:
        raise UserError("DATASET (--dataset): its images have {} channels and {}x{} pixels, the VQ-VAE was trained "
                        "on {} channels and {}x{}{}".format(*images.shape[1:], *expected, remedy))


def load_priors(output_dir: str, vqvae: dict[str, Any]) -> list[tuple[list[dict[str, Any]], nn.ModuleList]]:
    """Read the priors of a run's directory, each as `load_prior` does. Any that is damaged, lacks a level or learnt
    the codes of another VQ-VAE than the checkpoint `vqvae`, already built, is left out with a line that says so.
    """
    found = []
    for name in priors_there(output_dir, vqvae):
        try:
            found.append(load_prior(output_dir, vqvae, name))
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def load_prior(output_dir: str, vqvae: dict[str, Any], name: str | None = None, both_sides: bool = False
               ) -> tuple[list[dict[str, Any]], nn.ModuleList]:
    """Read the prior `name` of a run's directory, or the one there: of several, that of the best validation loss.

    A masked prior has no likelihood to be compared by: of several priors it is taken where none else is left, or where
    codes are given on both sides of those to draw (both_sides), of which it alone makes full use.

    vqvae: the checkpoint, already built, whose codes it must have learnt: those of another one mean nothing to it.
    Returns checkpoints and networks, as `build` makes them, one for each level, coarse first. UserError if there is
    none that learnt these codes.
    """
    there = priors_there(output_dir, vqvae)
    if name is None and len(there) > 1:
        priors = load_priors(output_dir, vqvae)
        if not priors:
            raise UserError(f"no prior in {output_dir} is left: train one with "
                            f"{command(output_dir, DEFAULT_PRIOR, '--resume', 'never', '--overwrite')}")
        return min(priors, key=lambda prior: ((prior[0][-1]["stage"] == "masked") != both_sides,
                                              sum(validation_nll(level) * math.prod(level["grid"])
                                                  for level in prior[0])))
    data, config = vqvae["data"], vqvae["config"]
    stages = prior_stages(name or (there or [DEFAULT_PRIOR])[0], config["levels"])
    grids = grid_sizes(data["height"], data["width"], config["downsample"], config["levels"])
    priors, networks = [], nn.ModuleList()
    for stage, grid in zip(stages, grids):
        prior = load(output_dir, stage)
        networks.append(build(prior))
        sizes = prior["config"]
        learnt = prior.get("vqvae"), prior.get("grid"), sizes["num_codes"], sizes["coarse_codes"], sizes["num_classes"]
        if learnt != (fingerprint(vqvae["model"]), list(grid), config["num_codes"],
                      config["num_codes"] if priors else 0, len(prior["data"]["class_names"])):
            raise UserError(f"{stage}.pt learnt the codes of another vqvae.pt than the one beside it: train it again "
                            f"with {command(output_dir, stage, '--resume', 'never', '--overwrite')}, or put its own "
                            f"vqvae.pt back")
        if priors and priors[0]["data"]["class_names"] != prior["data"]["class_names"]:
            raise UserError(f"{stages[0]}.pt and {stage}.pt learnt different classes: train one of them again")
        priors.append(prior)
    return priors, networks


def priors_there(output_dir: str, vqvae: dict[str, Any]) -> list[str]:
    """The names of the priors of which a run's directory holds a level."""
    return [name for name in PRIORS if any(path_of(output_dir, stage).exists()
                                           for stage in prior_stages(name, vqvae["config"]["levels"]))]


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
        return float(constants(prior)["CLASS_DROPOUT"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def lacks_for_guidance(priors: list[dict[str, Any]]) -> str:
    """What a prior, of whose levels these are the checkpoints, lacks to be drawn from with guidance, which compares
    logits given a class with logits given none; "" if it has learnt both.
    """
    for prior in priors:
        dropout = class_dropout(prior)
        if not prior["data"]["class_names"]:
            return f"classes, and {prior['stage']}.pt learnt none: leave it at 1"
        if dropout is not None and not 0 < dropout < 1:
            return f"a prior trained with CLASS_DROPOUT above 0 and below 1, and {prior['stage']}.pt had {dropout:g}"
    return ""


def choose_guidance(guidance: float | str, top_p: float | str, priors: list[dict[str, Any]], given: bool = True,
                    remedy: str = "") -> tuple[float, float]:
    """GUIDANCE and TOP_P as numbers. What "auto" means was chosen by the tables in docs/RESULTS.md: "New digits".

    priors: the checkpoints of its levels. given: whether the draws are given a class; remedy: how to give one.
    UserError if GUIDANCE is a number other than 1, and cannot be done.
    """
    needs = lacks_for_guidance(priors) or ("" if given else f"a class: {remedy}")
    if guidance == "auto":
        guidance = 1.0 if needs else GUIDED
    elif guidance != 1 and needs:
        raise UserError(f"GUIDANCE (--guidance) of {guidance:g} needs {needs}")
    if top_p == "auto":  # guidance makes unlikely codes rarer by itself
        top_p = 1.0 if guidance > 1 else UNGUIDED_TOP_P
    return guidance, top_p
