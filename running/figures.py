"""Pictures and plots: grids of images as PNG files, and the curves of a training's history."""
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from modules import Quantized
from running.files import atomic

# grids, in pixels
GREY = 0.5              # of the lines between images, of empty places and of hidden pixels
GAP = 2                 # between images
SMALLEST_SIDE = 56      # images with a shorter side are enlarged by a whole factor, so that a person can see them,
LARGEST_SIDE = 224      # unless their longer side reaches this
SMALLEST_SHEET = 512    # the longer side of a grid, at least: a few images are enlarged further
THUMBNAIL = 96          # `save_labelled`: the longer side of an image, or about so many ...
LINE = 18               # ... and a line of text
GRID_IMAGES = 400       # most images of a grid; a script that saves more shows the first of them
GRID_PIXELS = 2**24  # pixels of all images in a grid, at most

# plots, in inches
DPI = 110
STRIP_WIDTH = 10        # `save_strips`: a strip of images
STRIP_GAP = 0.1         # space below a strip and to its right
LABEL_WIDTH = 3.4       # a strip's label, to its left
LABEL_HEIGHT = 0.35     # two lines of text
TITLE_HEIGHT = 0.3
PICTURE_SIDE = 3        # `save_latents`: a picture with its colour bar
HEADING_HEIGHT = 0.5    # the names of the columns
HEAT = "inferno"        # `heat`, `save_score`: colours of surprise, from dark to bright ...
HEAT_SHARE = 0.7        # ... how much of a pixel's colour they are ...
HEAT_SCALE = 2          # ... and the surprise of the brightest, in units of the threshold
HEAT_IMAGES = 12        # of a strip of scores.png
PANEL_WIDTH = 5         # `save_curves`: a panel
PANEL_HEIGHT = 3.4


def room(height: int, width: int) -> int:
    """How many images of this size a grid shows at most: GRID_IMAGES, or fewer large ones."""
    return max(1, min(GRID_IMAGES, GRID_PIXELS // (height * width)))


def save_image(image: Tensor, path: Path) -> None:
    """Write one image (C, H, W) in [0, 1], grey or RGB, as a PNG of its own size."""
    _save(_to_bytes(image).transpose(1, 2, 0), path)


def save_grid(images: Tensor, path: Path, columns: int = 0, names: Sequence[str] = ()) -> None:
    """Write images (N, C, H, W) in [0, 1] as one PNG, row by row; columns: 0 makes it about square.

    names: what is written above the columns, one for each.
    """
    sheet = _sheet(images, len(names) or columns)
    if names:
        height, width, channels = sheet.shape
        pitch = (width - GAP) // len(names)
        head = Image.new("RGB", (width, LINE), "white")
        for column, name in enumerate(names):
            _write(ImageDraw.Draw(head), (column * pitch + GAP, 0), name, pitch - GAP)
        pixels = np.asarray(head) if channels == 3 else np.asarray(head.convert("L"))[:, :, None]
        sheet = np.concatenate([pixels, sheet])
    _save(sheet, path)


def save_pairs(originals: Tensor, copies: Tensor, path: Path, columns: int) -> None:
    """Write images (N, C, H, W) in [0, 1] as one PNG, each with its copy below it, `columns` a row."""
    columns = min(columns, len(originals))
    gaps = originals.new_full((-len(originals) % columns, *originals.shape[1:]), GREY)
    pairs = zip(*(torch.cat([images, gaps]).split(columns) for images in (originals, copies)))
    save_grid(torch.cat([torch.cat(pair) for pair in pairs]), path, columns)


def _to_bytes(images: Tensor) -> np.ndarray:
    return images.detach().clamp(0, 1).mul(255).round().byte().cpu().numpy()


def _save(pixels: np.ndarray, path: Path, **options: Any) -> None:
    """Write pixels (height, width, C), grey or RGB, as a PNG; options: of Pillow's writer."""
    with atomic(path) as file:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", **options)


def _sheet(images: Tensor, columns: int = 0) -> np.ndarray:
    """The pixels (height, width, C) of a grid of images, with grey lines between them; places without one are white."""
    count, channels, height, width = images.shape
    square = math.ceil(math.sqrt(count))
    full = [number for number in range(square, 2 * square + 1) if count % number == 0]  # all of whose rows are full
    columns = min(count, columns or (full or [square])[0])
    rows = math.ceil(count / columns)
    factor = max(1, math.ceil(SMALLEST_SIDE / min(height, width))) if max(height, width) < LARGEST_SIDE else 1
    factor = max(factor, math.ceil(SMALLEST_SHEET / max(rows * height, columns * width)))
    pixels = _to_bytes(images)
    pixels = pixels.repeat(factor, 2).repeat(factor, 3)
    height, width = pixels.shape[2:]
    sheet = np.full((channels, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), round(255 * GREY),
                    np.uint8)
    if empty := rows * columns - count:
        sheet[:, -height - GAP:, -empty * (width + GAP):] = 255
    for i, image in enumerate(pixels):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        sheet[:, top:top + height, left:left + width] = image
    return sheet.transpose(1, 2, 0)


def save_labelled(strips: dict[str, tuple[Tensor, Tensor]], path: Path, across: int, comment: str) -> None:
    """Write a PNG of strips of small images, each under its text, "" for none. A strip is uint8 images (N, C, H, W),
    all of one size, and the indices of those to show, of which one at a time is held in memory.

    across: images beside each other; shorter strips stand side by side. comment: a text in the file.
    """
    images, indices = next(iter(strips.values()))
    height, width = images.shape[2:]
    scale = THUMBNAIL / max(height, width)
    scale = max(1, round(scale)) if scale > 0.75 else scale  # pixels stay square and sharp
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if list(strips) == [""]:
        strips = {(" " * row): (images, part) for row, part in enumerate(indices.split(across))}
    each = max(len(indices) for _, indices in strips.values())
    columns = min(len(strips), max(1, across // each))
    title = LINE if any(text.strip() for text in strips) else 0
    wide, tall = max(each * (width + GAP), THUMBNAIL // 2) + 4 * GAP, height + title + 2 * GAP
    sheet = Image.new("RGB", (columns * wide, math.ceil(len(strips) / columns) * tall), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, (images, indices)) in enumerate(strips.items()):
        left, top = number % columns * wide + GAP, number // columns * tall + GAP
        _write(draw, (left, top), text, wide - 4 * GAP)
        for place, index in enumerate(indices.tolist()):
            image = images[index].cpu().permute(1, 2, 0).contiguous().numpy()
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((width, height), how), (left + place * (width + GAP), top + title))
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", comment)
    _save(np.asarray(sheet), path, pnginfo=info)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    """Write a line of text to the right of a place, cut where it is wider than `width` pixels."""
    import matplotlib
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), LINE * 2 // 3)
    text = " ".join(text.encode(errors="replace").decode().split())
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "\N{HORIZONTAL ELLIPSIS}"
    draw.text(place, text, "black", font)


def save_strips(strips: dict[str, Tensor], title: str, path: Path) -> None:
    """Plot a strip of images (N, C, H, W) in [0, 1] for each label, with the label to its left."""
    sheets = [_sheet(images, len(images)) for images in strips.values()]
    strip_height = STRIP_WIDTH * sheets[0].shape[0] / sheets[0].shape[1]
    pitch = max(strip_height, LABEL_HEIGHT) + STRIP_GAP
    width, height = LABEL_WIDTH + STRIP_WIDTH + STRIP_GAP, TITLE_HEIGHT + len(sheets) * pitch + STRIP_GAP
    figure = _figure(width, height)
    for row, (label, sheet) in enumerate(zip(strips, sheets), start=1):
        axis = figure.add_axes((LABEL_WIDTH / width, 1 - (TITLE_HEIGHT + row * pitch) / height, STRIP_WIDTH / width,
                                strip_height / height))
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        axis.text(-0.01, 0.5, label, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    figure.text((LABEL_WIDTH + STRIP_WIDTH / 2) / width, 1 - 2 / 3 * TITLE_HEIGHT / height, title, ha="center",
                va="center", fontsize="large")
    _save_figure(figure, path)


def save_latents(images: Tensor, copies: Tensor, quantized: Quantized, channel: int, num_codes: int,
                 path: Path) -> None:
    """Plot a row for each image: the image and its copy (N, C, H, W), one channel of z_e and of z_q, both on one scale,
    and the map of its codes in [0, num_codes).
    """
    latents = [part[:, channel].cpu().numpy() for part in (quantized.z_e, quantized.z_q)]
    scale = {"cmap": "viridis", "vmin": min(map(np.min, latents)), "vmax": max(map(np.max, latents))}
    codes = {"cmap": "nipy_spectral", "vmin": 0, "vmax": num_codes - 1}
    titles = ["original", "reconstruction", f"z_e (layer norm), channel {channel}", f"z_q, channel {channel}", "codes"]
    scales = [{"cmap": "gray", "vmin": 0, "vmax": 1}] * 2 + [scale] * 2 + [codes]
    figure = _figure(len(titles) * PICTURE_SIDE, HEADING_HEIGHT + PICTURE_SIDE * len(images), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(images), len(titles), squeeze=False)):
        pictures = [image[row].permute(1, 2, 0).cpu().numpy() for image in (images, copies)]
        pictures += [maps[row] for maps in (*latents, quantized.codes.cpu().numpy())]
        for axis, picture, title, scale in zip(axes, pictures, titles, scales):
            shown = axis.imshow(picture, interpolation="nearest", **scale)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
            if title not in titles[:2]:
                figure.colorbar(shown, ax=axis)
    _save_figure(figure, path)


def heat(images: Tensor, surprises: Tensor, side: int, threshold: float) -> Tensor:
    """Images (N, C, H, W) in [0, 1] under the colours of the surprise (N, h, w) of their codes: (N, 3, H, W).

    side: pixels along a side of a code. threshold: half the surprise of the brightest colour, so that colours are
    comparable between all images that one prior scores.
    """
    from matplotlib import colormaps
    height, width = images.shape[2:]
    shares = surprises / max(HEAT_SCALE * threshold, 1e-12)
    colours = torch.from_numpy(colormaps[HEAT](shares.numpy())[..., :3]).float()
    colours = colours.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width].permute(0, 3, 1, 2)
    return (1 - HEAT_SHARE) * images + HEAT_SHARE * colours


def save_score(image: Tensor, copy: Tensor, restoration: Tensor, surprise: Tensor, threshold: float, side: int,
               path: Path) -> None:
    """Plot an image, its reconstruction and its restoration, all (C, H, W) in [0, 1]; the error of the reconstruction
    and how the restoration differs from it; and the surprise (h, w) of its codes as in `heat`, with those above the
    threshold framed.
    """
    from matplotlib.patches import Rectangle
    error, change = ((a - b).abs().mean(0, keepdim=True) for a, b in ((image, copy), (copy, restoration)))
    surprise_title = "surprise in bits, framed: unlikely"
    panels = {"original": image, "reconstruction": copy, "its error, absolute": error,
              surprise_title: heat(image[None], surprise[None], side, threshold)[0],
              "restoration": restoration, "what it changed": change}
    figure = _figure(len(panels) * PICTURE_SIDE, HEADING_HEIGHT + PICTURE_SIDE, layout="constrained")
    for axis, (title, picture) in zip(figure.subplots(1, len(panels)), panels.items()):
        shown = axis.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(title, fontsize="medium")
        if title == surprise_title:
            shown.set(cmap=HEAT, clim=(0, HEAT_SCALE * threshold))  # of the bar: the picture has its colours already
            figure.colorbar(shown, ax=axis, shrink=0.8, extend="max")
            for row, column in (surprise > threshold).nonzero().tolist():
                axis.add_patch(Rectangle((side * column - 0.5, side * row - 0.5), side, side, fill=False,
                                         edgecolor="cyan", linewidth=1.2))
        elif picture is error or picture is change:
            figure.colorbar(shown, ax=axis, shrink=0.8)
    _save_figure(figure, path)


def save_curves(history: list[dict[str, Any]], panels: dict[str, list[str]], path: Path) -> None:
    """Plot columns of a history against its epochs, a row of two panels for each entry of `panels` (title: columns).

    The left panel shows all epochs, the right one the later half on a scale of its own.
    """
    figure = _figure(2 * PANEL_WIDTH, PANEL_HEIGHT * len(panels), layout="constrained")
    late = history[len(history) // 2:]
    for axes, (title, columns) in zip(figure.subplots(len(panels), 2, squeeze=False), panels.items()):
        for axis, part, when in ((axes[0], history, "all epochs"), (axes[1], late, "later half")):
            epochs = [row["epoch"] for row in part]
            _lines(axis, {column: (epochs, [row[column] for row in part]) for column in columns})
            axis.set(title=f"{title}, {when}", xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
    _save_figure(figure, path)


def save_lines(panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]], path: Path) -> None:
    """Plot panels by title, two a row: lines (x, y) by label."""
    figure = _figure(2 * PANEL_WIDTH, PANEL_HEIGHT * max(1, math.ceil(len(panels) / 2)), layout="constrained")
    for number, (title, lines) in enumerate(panels.items()):
        axis = figure.add_subplot(math.ceil(len(panels) / 2), 2, number + 1)
        _lines(axis, lines)
        axis.set(title=title)
    _save_figure(figure, path)


def _lines(axis: Any, lines: dict[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Plot lines (x, y) by label."""
    for label, (x, y) in lines.items():
        axis.plot(x, y, ".-", label=label)
    axis.grid(alpha=0.3)
    axis.legend()


def save_shares(counts: Tensor, path: Path) -> None:
    """Plot the share of every code in counts (K,), most frequent first, beside the share in even use."""
    shares = counts.cpu().double().sort(descending=True).values / counts.sum().clamp_min(1).item()
    figure = _figure(2 * PANEL_WIDTH, PANEL_HEIGHT, layout="constrained")
    axis = figure.subplots()
    axis.fill_between(range(1, len(shares) + 1), shares, step="mid", alpha=0.6, label="share of the code")
    axis.axhline(1 / len(shares), color="black", linestyle="--", linewidth=1, label="even use")
    axis.set(xlabel="codes, most frequent first", ylabel="share of all codes", xlim=(0.5, len(shares) + 0.5))
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.2%}")
    axis.grid(alpha=0.3)
    axis.legend()
    _save_figure(figure, path)


def _figure(width: float, height: float, **options: Any) -> Any:
    """A matplotlib figure, in inches, that draws without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib is slow to import
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def _save_figure(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
