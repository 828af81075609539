"""Checkpoints: written whole or not at all, and read as data that nobody vouches for.

A checkpoint is a dict of tensors, numbers, texts, lists and dicts, saved by `torch.save` and loaded with
`weights_only=True`, so nothing in a file can run. One directory is one run: `vqvae.pt` and `pixelcnn.pt`.
"""
import argparse
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from cli import RULES, UserError
from modules import PixelCNN, VQVAE

FORMAT = "vqvae-pixelcnn"
VERSION = 1
STAGES = {"vqvae": VQVAE, "pixelcnn": PixelCNN}


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` only when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fingerprint(state: dict[str, Tensor]) -> str:
    """A digest of a network's weights: two networks with the same one give the same codes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def path_of(output_dir: str, stage: str) -> Path:
    """Where a stage's checkpoint lies in a run's directory."""
    return Path(output_dir) / f"{stage}.pt"


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
    """Read a stage's checkpoint. UserError, in one line, if it is missing or anything but a whole checkpoint."""
    path = path_of(output_dir, stage)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: make it with `python train_{stage}.py --output-dir {output_dir}`") from None
    foreign = UserError(f"{path} is damaged or not a checkpoint of this project: "
                        f"delete it and run `python train_{stage}.py --output-dir {output_dir}` again")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # nothing packed, nothing larger than the file, no bit flipped
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) \
                    or sum(entry.file_size for entry in entries) > len(data) or archive.testzip() is not None:
                raise foreign
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
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
    return content


def build(content: dict[str, Any], weights: str = "model") -> nn.Module:
    """The network of a checkpoint with the weights stored under `weights`, in eval mode, on the CPU.

    It is laid out without memory first, and takes the stored tensors only if every name and shape fits: sizes
    that lie allocate nothing.
    """
    stage = content["stage"]
    wrong = UserError(f"the {stage} checkpoint holds weights that do not fit its sizes: train again")
    try:
        config = content["config"]
        for name, value in config.items():
            if name.upper() in RULES:
                RULES[name.upper()].parse(value)
        with torch.device("meta"):
            network = STAGES[stage](**config)
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
        state = content[weights]
        if {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} != layout:
            raise wrong
        network.load_state_dict(state, assign=True)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise wrong from None
    return network.eval()


def fill(args: argparse.Namespace, stored: dict[str, Any]) -> argparse.Namespace:
    """Replace the constants that are None by what the stage before was given."""
    known = {name.upper(): value for name, value in (stored["data"]["reading"] | stored["data"]).items()}
    return argparse.Namespace(**{name: known[name] if value is None else value for name, value in vars(args).items()})


def check_images(stored: dict[str, Any], images: Tensor) -> None:
    """UserError unless images (N, C, H, W) have the channels and size that the VQ-VAE was trained on."""
    expected = tuple(stored["data"][name] for name in ("channels", "height", "width"))
    if tuple(images.shape[1:]) != expected:
        raise UserError("DATASET (--dataset): its images have {} channels and {}x{} pixels, the VQ-VAE was trained on {} "
                        "channels and {}x{}".format(*images.shape[1:], *expected))


def check_pair(vqvae: dict[str, Any], prior: dict[str, Any]) -> None:
    """UserError unless the prior learnt the codes of this very VQ-VAE: another one's codes mean nothing to it."""
    if prior["vqvae"] != fingerprint(vqvae["model"]):
        raise UserError("pixelcnn.pt learnt the codes of another vqvae.pt than the one beside it: train it again with "
                        "`python train_pixelcnn.py --resume never --overwrite`, or put its own vqvae.pt back")
