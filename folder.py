"""A folder of images as one array: listed at every start, decoded once on all cores, then mapped from disk.

The folder may be flat or hold one subfolder per class, and may have `train` and `test` above them. Decoding leaves
a directory under DATA_DIR: `images`, the pixels, and `index.json`, what they are of. It takes its name only when it
is whole, and is made anew once a file of the folder has another path, size or time.

Files are put in the order of a hash of their relative path: the lowest tenth is the test split where the folder
names none, so a file never changes sides as others come and go; and the first N images of a split are a draw by chance.
"""
import gc
import hashlib
import io
import json
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

import devices
from cli import UserError, flag
from files import alone, atomic

try:
    import simplejpeg
except ImportError:  # Pillow does its work, only slower
    simplejpeg = None

VERSION = 2           # change it with anything that changes the decoding: an index of another one is not used
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # what Pillow may open, whatever the file is called
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", *NIFTI)
SPLITS = {"train": {"train", "training"}, "test": {"test", "testing"}}  # what their folders are called, in any case
VALIDATION = {"val", "valid", "validation"}  # beside `train`, neither a class nor a test split
TEST_SHARE = 0.1      # of the files, where the folder has no test split
MAX_VOXELS = 2**29    # of a NIfTI file; Pillow has its own limit for pictures
CHUNK = 256           # most files in a task of a decoding process ...
TASKS = 8             # ... of which there are about so many a process, if the files are few
WHOLE = 2**16         # a picture of fewer bytes is read into memory at once
SHOWN = 10            # names in a message


class Reading(NamedTuple):
    """How a folder's files become images: the constants of the same names in train_vqvae.py."""

    image_size: str = "0"
    channels: int = 0
    nifti_axis: int = 2
    nifti_scale: str = "volume"
    nifti_low: float = 0.5
    nifti_high: float = 99.5
    max_unreadable: float = 0.01

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are brought to; None: their own."""
        height, _, width = self.image_size.partition("x")
        return (int(height), int(width or height)) if int(height) else None


class Folder(NamedTuple):
    images: Tensor          # (N, C, H, W) uint8, first the training part, then the test part; not to be written to
    labels: Tensor          # (N,) int64, all 0 where there are no classes
    train: int              # images of the training part
    class_names: list[str]
    files: list[str]        # (N,) the relative path of each image's file


def load(root: str, data_dir: str, reading: Reading) -> Folder:
    """The images of a folder, from their decoded array under data_dir, which is made first if need be.

    UserError if the folder cannot be read, holds no images, or too many that cannot be decoded.
    """
    files, others = list_files(root)
    key = repr((str(Path(root).resolve()), reading._replace(max_unreadable=0)))
    home = Path(data_dir) / "folders" / f"{Path(root).resolve().name[:50]}-{_digest(key)[:12]}"
    listing = _digest(repr(sorted(files)))
    index = _read_index(home, listing)
    if index is None:
        with alone(home.with_name(home.name + ".lock"), "decodes this folder"):
            index = _read_index(home, listing) or _decode_folder(root, files, home, listing, reading)
    check_broken(root, index["broken"], index["tried"], reading)  # it may have been decoded with more allowed
    if devices.is_main():
        for notice in [*index["notices"], *([f"left out, not images by their names: {others}"] if others else [])]:
            print(notice, file=sys.stderr)
    count, height, width, channels = index["shape"]
    images = _map(home / "images").view(count, height, width, channels).permute(0, 3, 1, 2)
    return Folder(images, torch.tensor(index["labels"]), index["train"], index["class_names"], index["files"])


def read(path: str, reading: Reading) -> Tensor:
    """The images (N, C, H, W) uint8 of one file: N is 1, but for NIfTI volumes. UserError if it cannot be decoded."""
    with _strictly():
        outcome = _try_decode(path, reading)
    if isinstance(outcome, str):
        raise UserError(f"{path} cannot be decoded: {outcome}")
    return torch.from_numpy(outcome.copy()).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------------
# Which files there are


def list_files(root: str) -> tuple[list[tuple[str, int, int]], str]:
    """Relative path, size and time in ns of every file under root that is an image by its name; and in words, what
    other files there are. Hidden files are passed over.

    UserError if there is none, or where a folder cannot be read or a symbolic link leads into a loop.
    """
    found, others = [], Counter()
    todo = [("", frozenset())]  # a folder's relative path, and the identities of the folders above it
    while todo:
        inside, above = todo.pop()
        try:
            status = os.stat(os.path.join(root, inside))
            identity = status.st_dev, status.st_ino
            if identity in above:
                raise UserError(f"{os.path.join(root, inside)} is a symbolic link to a folder above it: remove it")
            for entry in os.scandir(os.path.join(root, inside)):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    todo.append((name, above | {identity}))
                elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    status = entry.stat()
                    found.append((name, status.st_size, status.st_mtime_ns))
                elif entry.name.lower().endswith(SUFFIXES) and entry.is_symlink():
                    found.append((name, -1, 0))  # to nothing, as decoding it will say
                else:
                    others[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1
        except OSError as error:
            raise UserError(f"{error.filename or root}: {error.strerror}") from None
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(SHOWN))
    if not found:
        raise UserError(f"DATASET (--dataset): there is no image in {root}{f', only {kinds}' if kinds else ''}: it may "
                        f"hold {' '.join(SUFFIXES)}")
    return found, kinds


def arrange(names: list[str]) -> tuple[list[tuple[str, bool, int]], list[str], list[str]]:
    """Relative paths to (path, whether it is of the test split, label) in the order of the array, the class names,
    and the paths that belong to neither split.
    """
    tops = {name.split("/")[0] for name in names if "/" in name}
    sides = {top: side for top in tops for side, words in SPLITS.items() if top.lower() in words}
    others = {top.lower() for top in tops - sides.keys()}
    if "train" in sides.values() and ("test" in sides.values() or others <= VALIDATION):
        stray = [name for name in names if name.split("/")[0] not in sides]
        names = [name for name in names if name.split("/")[0] in sides]
        classes = {name: name.split("/")[1:-1][:1] for name in names}
    else:
        sides, stray = {}, []
        classes = {name: name.split("/")[:-1][:1] for name in names}
    chance = {name: int(_digest(os.fsencode(name))[:12], 16) / 16**12 for name in names}
    names = sorted(names, key=chance.get)
    if "test" in sides.values():
        tests = {name for name in names if sides[name.split("/")[0]] == "test"}
    else:
        tests = {name for name in names if chance[name] < TEST_SHARE} or {names[0]}
    class_names = sorted({parts[0] for parts in classes.values() if parts}) if all(classes.values()) else []
    numbers = {name: number for number, name in enumerate(class_names)}
    order = [(name, name in tests, numbers[classes[name][0]] if numbers else 0) for name in names]
    return sorted(order, key=lambda entry: entry[1]), class_names, stray


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode(errors="surrogateescape") if isinstance(content, str) else content).hexdigest()


def _some(names: list[str]) -> str:
    """The first few of the names, on one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return " ".join(("; ".join(names[:SHOWN]) + more).split())


# ---------------------------------------------------------------------------------------------------------
# One file


def decode(path: str, reading: Reading) -> np.ndarray:
    """The images (N, H, W, C) uint8 of one file, C 1 or 3, of the size that reading asks for or their own.

    Whatever the decoders raise passes through.
    """
    if path.lower().endswith(NIFTI):
        pictures = nifti_slices(path, reading)
    else:
        with open(path, "rb") as file:
            content = file.read(WHOLE)  # at once: Pillow reads a small file in some forty pieces
            whole = len(content) < WHOLE
            pixels = plain_jpeg(content, reading) if whole else None
            if pixels is not None:
                return pixels[None]
            pictures = [picture(io.BytesIO(content) if whole else file, reading)]
    if reading.channels:
        pictures = [image.convert("L" if reading.channels == 1 else "RGB") for image in pictures]
    if reading.size:  # the largest part of that shape about the middle
        pictures = [ImageOps.fit(image, reading.size[::-1], Image.Resampling.LANCZOS) for image in pictures]
    pixels = np.frombuffer(b"".join(image.tobytes() for image in pictures), np.uint8)
    return pixels.reshape(len(pictures), pictures[0].height, pictures[0].width, -1)


def plain_jpeg(content: bytes, reading: Reading) -> np.ndarray | None:
    """The pixels (H, W, C) of a small JPEG file: those that Pillow decodes (with the same libjpeg), in a quarter of its
    time. None for what is not plain and whole, or is to be converted: of that Pillow judges.
    """
    if simplejpeg is None or reading.size or not content.startswith(b"\xff\xd8\xff") or b"Exif" in content:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        channels = {"Gray": 1, "YCbCr": 3}.get(colours)
        if reading.channels not in (0, channels) or not channels or height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB")
    except Exception:  # at the least damage, and at samplings that it does not know
        return None


def picture(file: BinaryIO, reading: Reading) -> Image.Image:
    """The (first) picture of a file that Pillow reads, upright and without transparency: mode "L" or "RGB".

    What is transparent becomes white; 16 bits of grey become 8 by their high byte, rounded (Pillow cuts those of
    colours off); 32-bit and floating-point TIFF, which have no fixed range, are scaled as NIfTI is.
    """
    image = Image.open(file, formats=FORMATS)
    mode, kind = image.mode, image.format
    if reading.size:  # a JPEG is decoded at the eighth, fourth or half of its size where that is enough
        image.draft(None, (2 * max(reading.size),) * 2)
    image.load()
    white_is_zero = kind == "TIFF" and image.tag_v2.get(262) == 0
    if kind == "TIFF" or image.info.keys() & {"exif", "Raw profile type exif"}:
        image = ImageOps.exif_transpose(image)
    if mode.startswith("I;16") or (mode == "I" and kind == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        grey[wide == image.info.get("transparency", -1)] = 255
        return Image.fromarray(255 - grey if white_is_zero else grey)  # Pillow turns 8 bits alone around
    if mode in ("I", "F"):
        return Image.fromarray(to_bytes(np.asarray(image), *ends(np.asarray(image), reading)))
    grey = mode in ("1", "L", "LA", "La")  # how the file has it
    if mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3))
        grey = bool((palette == palette[:, :1]).all())
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def nifti_slices(path: str, reading: Reading) -> list[Image.Image]:
    """The slices of a NIfTI file along nifti_axis, one if it is 2D; rows and columns are the array's own axes."""
    import nibabel
    volume = nibabel.load(path)
    shape = volume.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"its shape {volume.shape} is neither a slice nor a volume")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise ValueError(f"its {'x'.join(map(str, shape))} voxels are more than {MAX_VOXELS}")
    values = np.asarray(volume.dataobj)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its voxels are of type {values.dtype}, not real numbers")
    values = values.reshape(shape)
    slices = [values] if len(shape) == 2 else np.moveaxis(values, reading.nifti_axis, 0)
    whole = ends(values, reading) if reading.nifti_scale == "volume" else None
    return [Image.fromarray(to_bytes(part, *(whole or ends(part, reading)))) for part in slices]


def ends(values: np.ndarray, reading: Reading) -> tuple[float, float]:
    """The intensities that become black and white: percentiles of the finite ones, or their extremes where the
    percentiles are the same, as in a mask of one small spot.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    bottom, top = np.percentile(finite, (reading.nifti_low, reading.nifti_high))
    return (float(bottom), float(top)) if bottom < top else (float(finite.min()), float(finite.max()))


def to_bytes(values: np.ndarray, bottom: float, top: float) -> np.ndarray:
    """Intensities as uint8: bottom and below 0, top and above 255, NaN 0, and where bottom is top too."""
    scaled = (values.astype(np.float64) - bottom) / ((top - bottom) or np.inf)
    return np.rint(np.nan_to_num(scaled, nan=0).clip(0, 1) * 255).astype(np.uint8, order="C")


@contextmanager
def _strictly() -> Iterator[None]:
    """In here Pillow refuses decompression bombs, and no decoder warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _try_decode(path: str, reading: Reading) -> np.ndarray | str:
    """The images of a file, or the reason why there are none."""
    try:
        return decode(path, reading)
    except ImportError as error:
        raise UserError(f"{path} is a NIfTI file, which needs nibabel ({error}): `pip install nibabel`") from None
    except Image.UnidentifiedImageError:
        return "not an image of a known format" if os.path.getsize(path) else "empty"
    except Exception as error:  # whatever the bytes of a foreign file make the decoders raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return " ".join(reason.split())[:200]


# ---------------------------------------------------------------------------------------------------------
# The decoded array


def _decode_folder(root: str, files: list[tuple[str, int, int]], home: Path, listing: str,
                   reading: Reading) -> dict[str, Any]:
    """Decode the files into the directory `home` and return its index."""
    order, class_names, stray = arrange([name for name, _, _ in files])
    started = time.monotonic()
    work = home.with_name(home.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        each = max(1, min(CHUNK, len(order) // (TASKS * _cores())))
        chunks = [order[i:i + each] for i in range(0, len(order), each)]
        outcomes = _decode_chunks(root, chunks, work, reading)
        broken = [f"{entry[0]} ({outcome})" for chunk, shapes in zip(chunks, outcomes)
                  for entry, outcome in zip(chunk, shapes) if isinstance(outcome, str)]
        check_broken(root, broken, len(order), reading)
        shapes = [outcome for shapes in outcomes for outcome in shapes if not isinstance(outcome, str)]
        sizes = Counter()
        for count, height, width, _ in shapes:
            sizes[height, width] += count
        size = max(sizes, key=lambda size: (sizes[size], size))
        channels = max(shape[3] for shape in shapes if shape[1:3] == size)
        rows, dropped = _assemble(work, chunks, outcomes, size, channels)
        notices = [f"left out, neither in train nor in test: {len(stray)} files ({_some(stray)})"] if stray else []
        if broken:
            notices.append(f"left out, cannot be decoded: {len(broken)} files: {_some(broken)}")
        for (height, width), names in dropped.items():
            notices.append(f"left out, {height}x{width} and not {size[0]}x{size[1]} as most: {sizes[height, width]} "
                           f"images ({_some(names)}); {flag('IMAGE_SIZE')} {size[0]}x{size[1]} would keep them")
        index = {"version": VERSION, "listing": listing, "shape": [len(rows), *size, channels],
                 "train": sum(not test for _, test, _ in rows), "class_names": class_names,
                 "broken": broken, "tried": len(order), "notices": notices, "labels": [label for _, _, label in rows],
                 "files": [name for name, _, _ in rows]}
        with atomic(work / "index.json") as file:
            file.write(json.dumps(index).encode())
        shutil.rmtree(home, ignore_errors=True)
        os.rename(work, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if devices.is_main():
        seconds = time.monotonic() - started
        print(f"decoded {len(rows)} images of {size[0]}x{size[1]}, {channels} channels, in {seconds:.1f} s "
              f"({len(rows) / seconds:.0f} a second) into {home}", file=sys.stderr)
    return index


def check_broken(root: str, broken: list[str], tried: int, reading: Reading) -> None:
    """UserError if more of the files tried are broken than MAX_UNREADABLE allows, or all."""
    if len(broken) > reading.max_unreadable * tried or len(broken) == tried:
        raise UserError(f"{len(broken)} of the {tried} image files in {root} cannot be decoded, more than the share of "
                        f"{reading.max_unreadable} that MAX_UNREADABLE ({flag('MAX_UNREADABLE')}) allows: "
                        f"{_some(broken)}")


def _decode_chunks(root: str, chunks: list[list], work: Path, reading: Reading) -> list[list]:
    """Decode every chunk of files into a file of its own in `work`; what `_decode_chunk` returns for each."""
    paths = [[os.path.join(root, name) for name, _, _ in chunk] for chunk in chunks]
    if any(path.lower().endswith(NIFTI) for chunk in paths for path in chunk):
        try:
            import nibabel  # noqa: F401  (here once, for all the processes)
        except ImportError as error:
            raise UserError(f"{root} holds NIfTI files, which need nibabel ({error}): `pip install nibabel`") from None
    targets = (work / str(number) for number in range(len(chunks)))
    outcomes = []
    try:
        with processes(len(chunks)) as pool, \
                tqdm(desc="decoding", total=sum(map(len, chunks)), unit="file", leave=False, disable=None) as bar:
            for outcome in pool.map(_decode_chunk, paths, targets, repeat(reading)):
                outcomes.append(outcome)
                bar.update(len(outcome))
        return outcomes
    except BrokenProcessPool:
        raise UserError(f"a decoding process was killed, by too little memory or a file that breaks its decoder, at "
                        f"{paths[len(outcomes)][0]} or one of the next {len(paths[0]) * _cores()}") from None


@contextmanager
def processes(tasks: int) -> Iterator[ProcessPoolExecutor]:
    """Processes on all cores for so many tasks, which leave signals to this one and end with it. What is not begun
    when the block is left is not done.
    """
    method = "fork" if sys.platform == "linux" else "spawn"  # forking spares every process the import of torch
    pool = ProcessPoolExecutor(min(_cores(), tasks), multiprocessing.get_context(method), _start_process)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """The cores that this process may use, as many as a pool may have on any system at most."""
    return min(60, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _start_process() -> None:
    """Leave signals to the parent, and end with it however it ends."""
    gc.freeze()  # what came from the parent, all of torch, need not be searched for garbage over and over
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _decode_chunk(paths: list[str], target: Path, reading: Reading) -> list[tuple[int, int, int, int] | str]:
    """Write the images of the files one after the other into target; for each their shape, or why there are none."""
    outcomes = []
    _read_ahead(paths)
    with open(target, "wb", buffering=2**20) as file, _strictly():
        for path in paths:
            images = _try_decode(path, reading)
            if not isinstance(images, str):
                file.write(images)
                images = images.shape
            outcomes.append(images)
    return outcomes


def _read_ahead(paths: list[str], enough: int = 2**20) -> None:
    """Have the system fetch the files' first `enough` bytes together: a disk takes much longer one by one."""
    for path in paths if hasattr(os, "posix_fadvise") else []:
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, enough, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def _assemble(work: Path, chunks: list[list], outcomes: list[list], size: tuple[int, int],
              channels: int) -> tuple[list[tuple[str, bool, int]], dict[tuple[int, int], list[str]]]:
    """Join the chunks' images of one size in the file `images`; returns its rows, and the files left out by size."""
    rows, dropped, whole = [], {}, (1, *size, channels)
    with open(work / "images", "wb", buffering=2**20) as target:
        for number, (chunk, shapes) in enumerate(zip(chunks, outcomes)):
            with open(work / str(number), "rb", buffering=2**20) as source:
                if all(shape == whole for shape in shapes):  # as nearly always: the chunk is copied as it is
                    shutil.copyfileobj(source, target, 2**20)
                    rows += chunk
                else:
                    rows += _pick(source, target, chunk, shapes, whole, dropped)
            os.unlink(work / str(number))
        target.flush()
        os.fsync(target.fileno())
    return rows, dropped


def _pick(source: BinaryIO, target: BinaryIO, chunk: list, shapes: list, whole: tuple[int, int, int, int],
          dropped: dict[tuple[int, int], list[str]]) -> list[tuple[str, bool, int]]:
    """Copy those of a chunk's images that are of the size of `whole`; returns their rows, adds others to dropped."""
    rows = []
    for (name, test, label), shape in zip(chunk, shapes):
        if isinstance(shape, str):
            continue
        pixels = source.read(math.prod(shape))
        if shape[1:3] != whole[1:3]:
            dropped.setdefault(shape[1:3], []).append(name)
            continue
        if shape[3] != whole[3]:  # grey among coloured ones
            pixels = np.frombuffer(pixels, np.uint8).repeat(whole[3])
        target.write(pixels)
        rows += [(name, test, label)] * shape[0]
    return rows


def _read_index(home: Path, listing: str) -> dict[str, Any] | None:
    """The index of a decoded folder, if it is of this listing and the pixels are all there."""
    try:
        index = json.loads((home / "index.json").read_bytes())
        good = (index["version"], index["listing"]) == (VERSION, listing) \
            and os.path.getsize(home / "images") == np.prod(index["shape"], dtype=np.int64) \
            and len(index["labels"]) == index["shape"][0]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is only a cache
        return None
    return index if good else None


_mapped: list[mmap.mmap] = []


def _map(path: Path) -> Tensor:
    """A file's bytes as a uint8 tensor that is read from disk as it is used, and must not be written to."""
    with open(path, "rb") as file:
        _mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    with warnings.catch_warnings():  # that it must not be written to; nothing here writes to images
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(_mapped[-1], dtype=torch.uint8)


def any_mapped() -> bool:
    """Whether this process has mapped a folder's images from disk."""
    return bool(_mapped)


def release() -> None:
    """Give back the memory of the mapped pixels read so far; the system keeps them cached as long as it has room."""
    for mapped in _mapped:
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
