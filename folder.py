"""A folder of images as one array: listed at every start, decoded once on all cores, then mapped from disk.

Decoding leaves a directory under DATA_DIR: `images`, the pixels, and `index.json`, what they are of. It takes its name
only when it is whole, and is made anew once a file of the folder has another path, size or time. layout.py says which
split and class a file is of, decode.py reads one file.
"""
import json
import math
import mmap
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import devices
from cli import UserError, flag
from decode import NIFTI, Reading, strictly, try_decode
from files import alone, atomic
from layout import arrange, digest, list_files, some

VERSION = 3           # change it with anything that changes the decoding: an index of another one is not used
CHUNK = 256           # most files in a task of a decoding process ...
TASKS = 8             # ... of which there are about so many a process, if the files are few


class Folder(NamedTuple):
    images: Tensor          # (N, C, H, W) uint8, first the training part, then the test part; not to be written to
    labels: Tensor          # (N,) int64, all 0 where there are no classes
    train: int              # images of the training part: all, if they are of one file or subject
    class_names: list[str]
    files: list[str]        # (N,) the relative path of each image's file
    validation: int         # images of a validation split that the folder names, the first of the training part
    units: list[str]        # (N,) what must not be cut by a split: each image's subject, or else its file
    taken_for: list[str]    # lines: what the folder was taken for, where that is not plain


def load(root: str, data_dir: str, reading: Reading, output_dir: str = "") -> Folder:
    """The images of a folder, from their decoded array under data_dir, which is made first if need be.

    What lies in data_dir, output_dir and other runs' directories is no data. UserError if the folder cannot be read,
    holds no images, or too many that cannot be decoded.
    """
    files, others, skipped = list_files(root, [data_dir, *([output_dir] if output_dir else [])])
    key = repr((str(Path(root).resolve()), reading._replace(max_unreadable=0)))
    home = Path(data_dir) / "folders" / f"{Path(root).resolve().name[:50]}-{digest(key)[:12]}"
    listing = digest(repr(sorted(files)))
    index = _read_index(home, listing)
    if index is None:
        with alone(home.with_name(home.name + ".lock"), "decodes this folder"):
            index = _read_index(home, listing) or _decode_folder(root, files, home, listing, reading)
    check_broken(root, index["broken"], index["tried"], reading)  # it may have been decoded with more allowed
    if devices.is_main():
        for notice in [*index["notices"], *([f"left out, not images by their names: {others}"] if others else []),
                       *([f"left out, the files of runs and their data: {some(skipped)}"] if skipped else [])]:
            print(notice, file=sys.stderr)
    count, height, width, channels = index["shape"]
    images = _map(home / "images").view(count, height, width, channels).permute(0, 3, 1, 2)
    units = [index["subjects"].get(name, name) for name in index["files"]]
    return Folder(images, torch.tensor(index["labels"]), index["train"], index["class_names"], index["files"],
                  index["validation"], units, index["taken_for"])


def _decode_folder(root: str, files: list[tuple[str, int, int]], home: Path, listing: str,
                   reading: Reading) -> dict[str, Any]:
    """Decode the files into the directory `home` and return its index."""
    order, class_names, validation, subjects, left_out, taken_for = arrange([name for name, _, _ in files],
                                                                            reading.classes)
    started = time.monotonic()
    work = home.with_name(home.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        each = max(1, min(CHUNK, len(order) // (TASKS * devices.cores())))
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
        notices = list(left_out)
        if broken:
            notices.append(f"left out, cannot be decoded: {len(broken)} files: {some(broken)}")
        for (height, width), names in dropped.items():
            notices.append(f"left out, {height}x{width} and not {size[0]}x{size[1]} as most: {sizes[height, width]} "
                           f"images ({some(names)}); {flag('IMAGE_SIZE')} {size[0]}x{size[1]} would keep them")
        index = {"version": VERSION, "listing": listing, "shape": [len(rows), *size, channels],
                 "train": sum(not test for _, test, _ in rows), "class_names": class_names,
                 "validation": sum(name in validation for name, _, _ in rows), "subjects": subjects,
                 "taken_for": taken_for,
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
                        f"{some(broken)}")


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
        with devices.processes(len(chunks)) as pool, \
                tqdm(desc="decoding", total=sum(map(len, chunks)), unit="file", leave=False, disable=None) as bar:
            for outcome in pool.map(_decode_chunk, paths, targets, repeat(reading)):
                outcomes.append(outcome)
                bar.update(len(outcome))
        return outcomes
    except BrokenProcessPool:
        raise UserError(f"a decoding process was killed, by too little memory or a file that breaks its decoder, at "
                        f"{paths[len(outcomes)][0]} or one of the next {len(paths[0]) * devices.cores()}") from None


def _decode_chunk(paths: list[str], target: Path, reading: Reading) -> list[tuple[int, int, int, int] | str]:
    """Write the images of the files one after the other into target; for each their shape, or why there are none."""
    outcomes = []
    _read_ahead(paths)
    with open(target, "wb", buffering=2**20) as file, strictly():
        for path in paths:
            images = try_decode(path, reading)
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
