"""Pictures and plots: grids of images as PNG files, and the curves of a training's history."""
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files import atomic

GAP = 2            # pixels between the images of a grid
THUMBNAIL = 96     # pixels of the longer side of an image in a labelled picture, or about so many
LINE = 18          # pixels of a line of text in it
SMALLEST_SIDE = 56  # images of a grid below this are enlarged by a whole factor, so that a person can see them


def save_image(image: Tensor, path: Path) -> None:
    """Write one image (C, H, W) in [0, 1], grey or RGB, as a PNG of its own size."""
    pixels = image.detach().clamp(0, 1).mul(255).round().byte().cpu().permute(1, 2, 0).numpy()
    _save(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), path)


def save_grid(images: Tensor, path: Path, columns: int = 0) -> None:
    """Write images (N, C, H, W) in [0, 1] as one PNG, row by row; columns: 0 makes it about square."""
    sheet = _sheet(images, columns)
    _save(Image.fromarray(sheet[:, :, 0] if sheet.shape[2] == 1 else sheet), path)


def save_pairs(originals: Tensor, copies: Tensor, path: Path, columns: int) -> None:
    """Write images (N, C, H, W) in [0, 1] as one PNG, each with its copy below it, `columns` a row."""
    columns = min(columns, len(originals))
    gaps = originals.new_full((-len(originals) % columns, *originals.shape[1:]), 0.5)
    pairs = zip(*(torch.cat([images, gaps]).split(columns) for images in (originals, copies)))
    save_grid(torch.cat([torch.cat(pair) for pair in pairs]), path, columns)


def _sheet(images: Tensor, columns: int = 0) -> np.ndarray:
    """The pixels (height, width, C) of a grid of images, with grey lines between them."""
    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    factor = max(1, math.ceil(SMALLEST_SIDE / min(height, width))) if max(height, width) < 4 * SMALLEST_SIDE else 1
    pixels = images.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    pixels = pixels.repeat(factor, 2).repeat(factor, 3)
    height, width = pixels.shape[2:]
    rows = math.ceil(count / columns)
    sheet = np.full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 128, np.uint8)
    for i, image in enumerate(pixels):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        sheet[:, top:top + height, left:left + width] = image
    return sheet.transpose(1, 2, 0)


def save_labelled(strips: dict[str, Tensor], path: Path, across: int, comment: str) -> None:
    """Write a PNG of uint8 images (N, C, H, W) under the text that each strip of them goes by, "" for none.

    across: images beside each other; shorter strips stand side by side. comment: a text in the file.
    """
    import matplotlib
    from PIL import ImageDraw, ImageFont, PngImagePlugin
    first = next(iter(strips.values()))
    height, width = first.shape[2:]
    scale = THUMBNAIL / max(height, width)
    scale = max(1, round(scale)) if scale > 0.75 else scale  # pixels stay square and sharp
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if list(strips) == [""]:
        strips = {(" " * row): images for row, images in enumerate(first.split(across))}
    each = max(len(images) for images in strips.values())
    columns = min(len(strips), max(1, across // each))
    title = LINE if any(text.strip() for text in strips) else 0
    wide, tall = each * (width + GAP) + 4 * GAP, height + title + 2 * GAP
    sheet = Image.new("RGB", (columns * wide, math.ceil(len(strips) / columns) * tall), "white")
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), LINE * 2 // 3)
    draw = ImageDraw.Draw(sheet)
    for number, (text, images) in enumerate(strips.items()):
        left, top = number % columns * wide + GAP, number // columns * tall + GAP
        text = " ".join(text.encode(errors="replace").decode().split())
        while draw.textlength(text, font) > wide - 4 * GAP:
            text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        draw.text((left, top), text, "black", font)
        for place, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((width, height), how), (left + place * (width + GAP), top + title))
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", comment)
    _save(sheet, path, pnginfo=info)


def save_strips(strips: dict[str, Tensor], title: str, path: Path) -> None:
    """Plot a strip of images (N, C, H, W) in [0, 1] for each label, which stands at its left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    sheets = [_sheet(images, len(images)) for images in strips.values()]
    height, width = sheets[0].shape[:2]
    strip = 10 * height / width  # in inches, as all of it: the labels take 3.4 of the width, the strips 10
    pitch = max(strip, 0.35) + 0.1  # a label has two lines
    tall = 0.4 + len(sheets) * pitch
    figure = Figure(figsize=(13.5, tall))
    FigureCanvasAgg(figure)
    for row, (label, sheet) in enumerate(zip(strips, sheets), start=1):
        axis = figure.add_axes((3.4 / 13.5, 1 - (0.3 + row * pitch) / tall, 10 / 13.5, strip / tall))
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.text(8.4 / 13.5, 1 - 0.2 / tall, title, ha="center", va="center", fontsize="large")
    _save_figure(figure, path)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    with atomic(path) as file:
        picture.save(file, "PNG", **options)


def save_latents(images: Tensor, copies: Tensor, z_e: Tensor, z_q: Tensor, codes: Tensor, channel: int, num_codes: int,
                 path: Path) -> None:
    """Plot a row for each image: itself and its reconstruction (N, C, H, W), one channel of z_e and the same channel of
    z_q (N, D, h, w) on one scale, and the map of its codes (N, h, w) in [0, num_codes).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 0.5 + 3 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    latents = torch.stack([z_e[:, channel], z_q[:, channel]]).cpu().numpy()
    scales = [{"cmap": "gray", "vmin": 0, "vmax": 1}] * 2 \
        + [{"cmap": "viridis", "vmin": latents.min().item(), "vmax": latents.max().item()}] * 2 \
        + [{"cmap": "nipy_spectral", "vmin": 0, "vmax": num_codes - 1}]
    titles = ["original", "reconstruction", f"z_e (layer norm), channel {channel}", f"z_q, channel {channel}", "codes"]
    for row, axes in enumerate(figure.subplots(len(images), 5, squeeze=False)):
        pictures = [image[row].permute(1, 2, 0).cpu().numpy() for image in (images, copies)]
        pictures += [*latents[:, row], codes[row].cpu().numpy()]
        for axis, picture, title, scale in zip(axes, pictures, titles, scales):
            shown = axis.imshow(picture, interpolation="nearest", **scale)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
            if title not in titles[:2]:
                figure.colorbar(shown, ax=axis)
    _save_figure(figure, path)


def save_curves(history: list[dict[str, Any]], panels: dict[str, list[str]], path: Path) -> None:
    """Plot columns of a history against its epochs, a row of two panels for each entry of `panels` (title: columns).

    The left panel shows the whole run, the right one the later half of the epochs on a scale of its own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 3.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    late = history[len(history) // 2:]
    for axes, (title, columns) in zip(figure.subplots(len(panels), 2, squeeze=False), panels.items()):
        for axis, part, when in ((axes[0], history, "all epochs"), (axes[1], late, "later half")):
            for column in columns:
                axis.plot([row["epoch"] for row in part], [row[column] for row in part], ".-", label=column)
            axis.set(title=f"{title}, {when}", xlabel="epoch")
            axis.grid(alpha=0.3)
            axis.legend()
    _save_figure(figure, path)


def _save_figure(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
