"""Samples as pictures: a grid of them while a prior learns, and those of generate.py, kept where it continues."""
import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from loading.decode import read
from loading.reading import Reading
from modules import VQVAE
from priors.codes import to_images
from priors.draws import Draw
from priors.sampler import draw_grids
from running import figures
from running.cli import UserError
from running.files import atomic
from training import checkpoint

PICTURED = 64      # samples in the grid of a training, about
MOST_COLUMNS = 20  # of a grid with a column for each class


@torch.no_grad()
def draw_images(model: nn.Module, vqvae: VQVAE, count: int, size: tuple[int, int], seed: int, batch_size: int,
                how: Draw = Draw()) -> Tensor:
    """Images (count, C, height, width) of this size drawn from a prior in eval mode, of its classes in turn."""
    labels = torch.arange(count) % max(1, model.num_classes)
    codes = torch.cat(list(draw_grids(model, labels, vqvae.grid(*size), seed, batch_size, how)))
    return to_images(vqvae, codes, *size)


def save_samples(model: nn.Module, vqvae: VQVAE, stored: dict, args: argparse.Namespace, path: Path) -> None:
    """Write a grid of samples of the classes in turn. stored: the checkpoint of the VQ-VAE."""
    size, classes = (stored["data"]["height"], stored["data"]["width"]), range(model.num_classes)
    names = column_names(stored, classes) if len(stored["data"]["class_names"]) == len(classes) else []
    count = PICTURED - PICTURED % max(1, len(names))  # rows that are full
    images = draw_images(model.eval(), vqvae, count, size, args.SEED, args.BATCH_SIZE)
    figures.save_grid(images, path, names=names)


def column_names(stored: dict, classes: Sequence[int]) -> list[str]:
    """The names of classes of which samples come in turn, where a grid has room for a column each; else none."""
    return [stored["data"]["class_names"][label] for label in classes] if 1 < len(classes) <= MOST_COLUMNS else []


def save_kept(output: Path, count: int, stored: dict, classes: list[int]) -> None:
    """Write the first of the `count` samples in a directory, of these classes in turn, as one grid. stored: the
    checkpoint of their prior.
    """
    reading = Reading(channels=stored["data"]["channels"])  # a grey sample of a colour run stays RGB
    shown = min(count, figures.room(stored["data"]["height"], stored["data"]["width"]))
    images = torch.cat([read(str(output / f"sample_{i}.png"), reading) for i in range(shown)])
    names = column_names(stored, classes)
    figures.save_grid(images / 255, output / "samples.png", names=names if len(images) >= len(names) else [])


def keep_samples_of(settings: dict, output: Path, count: int) -> None:
    """Remove the samples of earlier calls, but for samples 0 to `count` - 1 if they were drawn with these settings.

    UserError if the directory holds samples that no call has written.
    """
    path, found = output / "samples.json", list(output.glob("sample_*.png"))
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    ours = isinstance(before, dict) and before.keys() == settings.keys()
    if (found or path.exists()) and not ours and not checkpoint.path_of(output, "vqvae").exists():
        raise UserError(f"SAMPLES_DIR (--samples-dir): {output} holds {(found or [path])[0].name}, not written by this "
                        f"script: choose another directory")
    for file in found:
        number = file.stem.removeprefix("sample_")
        if number.isdecimal() and not (before == settings and int(number) < count):
            file.unlink()
    with atomic(path) as file:
        file.write(json.dumps(settings).encode())
