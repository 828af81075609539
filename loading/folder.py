"""A folder of images as one array: listed at every start, decoded once on all cores, then mapped from disk.

Decoding leaves a directory under DATA_DIR: `images`, the pixels, and `index.json`, what they are of. It takes its name
only when it is whole, and is made anew once a file of the folder has another path, size or time. layout.py says which
split and class a file is of, decode.py reads one file.

The first pass decodes every file that needs nothing of the others, the second one those that need the common size, as
their own is another, or the range of values, as their samples are wider than 8 bits.
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
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loading import decode, tables
from loading.layout import Arrangement, Entry, arrange, list_files, sha256, some
from loading.reading import Fit, Reading, Shape
from loading.volumes import is_dicom, study
from loading.wide import BIN_BITS, FirstPass, binned_ends
from running import devices
from running.cli import UserError, flag
from running.files import alone, atomic
from running.progress import Bar

VERSION = 5           # change it with anything that changes the decoding: an index of another one is not used
CHUNK = 256           # most files in a task of a decoding process ...
TASKS = 8             # ... of which there are about so many a process, if the files are few

NEAR = 1.3            # sides are near one another within this factor; below 4/3, between landscape and portrait photos
NEARLY_ALL = 0.95     # share of the images whose sides must be near the median ones for cropping and padding, and of
#                       those that must be grey for all to be
CROPPED = 2           # the most that cropping or padding changes a side by; images further off are resized
MULTIPLE = 8          # a common size that no image has is a multiple of this
MAX_SIDE = 256        # the longest shorter side of such a size where images are resized
USUAL = 9             # files that are looked at for the usual size
SAMPLED = 1000        # images that are looked at for blank ones ...
BLANK = 0.1           # ... of which such a share is worth a line


class Folder(NamedTuple):
    images: Tensor          # (N, C, H, W) uint8, first the training part, then the test part; not to be written to
    labels: Tensor          # (N,) int64, all 0 where there are no classes
    train: int              # images of the training part: all, if they are of one file or subject
    class_names: list[str]
    files: list[str]        # (N,) the relative path of each image's file
    validation: int         # images of a validation split that the folder names, the first of the training part
    units: list[str]        # (N,) what must not be cut by a split: each image's subject, or else its file
    taken_for: list[str]    # lines: how the folder was interpreted, where that is not plain
    value_range: str        # of samples wider than 8 bits, as VALUE_RANGE takes it; "auto" if there are none


class Task(NamedTuple):
    """A chunk of files for a decoding process."""

    entries: list[Entry]
    root: str
    target: Path                               # the file for their pixels
    reading: Reading
    usual: tuple[int, int] | None = None       # in the first pass: the size of the images to decode; None: any
    known: list[Shape | str] | None = None     # in the second pass: what the first one found, ...
    earlier: Path | None = None                # ... its file, which is removed, ...
    fits: dict[tuple[int, int], Fit] | None = None  # ... and how an image of each size comes to the common one


def load(root: str, data_dir: str, reading: Reading, output_dir: str = "") -> Folder:
    """The images of a folder, from their decoded array under data_dir, which is made first if need be.

    What lies in data_dir, output_dir and other runs' directories is no data. UserError if the folder cannot be read,
    holds no images, or too many that cannot be decoded.
    """
    _check_ends("VALUE_RANGE", reading.ends)
    _check_ends("NIFTI_LOW and NIFTI_HIGH", (reading.nifti_low, reading.nifti_high))
    files, left_out = list_files(root, [data_dir, *([output_dir] if output_dir else [])])
    key = repr((str(Path(root).resolve()), reading._replace(max_unreadable=0)))
    home = Path(data_dir) / "folders" / f"{Path(root).resolve().name[:50]}-{sha256(key)[:12]}"
    names = [name for name, *_ in files]
    beside = [os.stat(os.path.join(root, table)) for table in tables.find(root, names)]
    listing = sha256(repr([*sorted(files), *((table.st_size, table.st_mtime_ns) for table in beside)]))
    index = _read_index(home, listing)
    if index is None:
        with alone(home.with_name(home.name + ".lock"), "decodes this folder"):
            index = _read_index(home, listing) or _decode_folder(root, names, home, listing, reading)
    check_broken(root, index["broken"], index["tried"], reading)  # it may have been decoded with more allowed
    if devices.is_main():
        for notice in [*index["notices"], *left_out]:
            print(notice, file=sys.stderr)
    count, height, width, channels = index["shape"]
    images = _map(home / "images").view(count, height, width, channels).permute(0, 3, 1, 2)
    units = [index["subjects"].get(name, name) for name in index["files"]]
    return Folder(images, torch.tensor(index["labels"]), index["train"], index["class_names"], index["files"],
                  index["validation"], units, index["taken_for"], index["value_range"])


def _check_ends(name: str, ends: tuple[float, float] | None) -> None:
    if ends and ends[0] >= ends[1]:
        raise UserError(f"{name} of {ends[0]:g} and {ends[1]:g}: the first value must be below the second")


def _decode_folder(root: str, names: list[str], home: Path, listing: str, reading: Reading) -> dict[str, Any]:
    """Decode the files of these relative paths into the directory `home` and return its index."""
    paths = {name: os.path.join(root, name) for name in names}
    studies = {name: study(path) for name, path in paths.items() if is_dicom(path)}
    arrangement = arrange(names, reading.classes, {name: found for name, found in studies.items() if found},
                          tables.read(root, names))
    started = time.monotonic()
    work = home.with_name(home.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        index = {"version": VERSION, "listing": listing, **_decode_into(work, root, arrangement, reading)}
        with atomic(work / "index.json") as file:
            file.write(json.dumps(index).encode())
        shutil.rmtree(home, ignore_errors=True)
        os.rename(work, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if devices.is_main():
        seconds, (count, height, width, channels) = time.monotonic() - started, index["shape"]
        print(f"decoded {count} images of {height}x{width}, {channels} channels, in {seconds:.1f} s "
              f"({count / seconds:.0f} a second) into {home}", file=sys.stderr)
    return index


def _decode_into(work: Path, root: str, arrangement: Arrangement, reading: Reading) -> dict[str, Any]:
    """Decode the files of an arrangement into the file `images` in `work`; all of the index but version and listing."""
    order = arrangement.order
    each = max(1, min(CHUNK, len(order) // (TASKS * devices.cores())))
    usual = None if reading.size else _usual_size(root, order, reading)
    tasks = [Task(order[i:i + each], root, work / str(i), reading, usual) for i in range(0, len(order), each)]
    outcomes, counts = _decode_tasks(tasks)
    check_broken(root, _broken(tasks, outcomes), len(order), reading)
    if counts is not None:
        reading = reading._replace(value_range="{:.9g} {:.9g}".format(*binned_ends(counts, reading)))
    sizes = Counter()
    for shape in _shapes(outcomes):
        sizes[shape[1:3]] += shape.count
    common = Fit(*reading.size, "same") if reading.size else common_size(sizes)
    fits = {size: common if reading.size else fit_of(size, common) for size in sizes}
    done = common._replace(how="same")
    again = [i for i, part in enumerate(outcomes)
             if not all(shape.decoded and fits[shape[1:3]] == done for shape in _shapes([part]))]
    if again:
        for i in again:
            tasks[i] = tasks[i]._replace(reading=reading, target=work / f"{i} again", known=outcomes[i],
                                         earlier=tasks[i].target, fits=fits)
        second, _ = _decode_tasks([tasks[i] for i in again])
        for i, part in zip(again, second):
            outcomes[i] = part
        check_broken(root, _broken(tasks, outcomes), len(order), reading)
    kept = list(_shapes(outcomes))
    channels = reading.channels if reading.channels != "auto" else _common_channels(kept)
    rows = _join(work / "images", tasks, outcomes, (*common[:2], channels))
    broken = _broken(tasks, outcomes)
    lost = [f"left out, cannot be decoded: {len(broken)} files: {some(broken)}"] if broken else []
    notices = [*arrangement.left_out, *lost, *_size_notice(sizes, fits, common),
               *_kind_notices(kept, counts is not None, channels, reading), *_sameness(work / "images", len(rows))]
    return {"shape": [len(rows), *common[:2], channels], "train": sum(entry.side != "test" for entry in rows),
            "class_names": arrangement.class_names, "value_range": reading.value_range,
            "validation": sum(entry.side == "validation" for entry in rows), "subjects": arrangement.subjects,
            "taken_for": arrangement.taken_for, "broken": broken, "tried": len(order), "notices": notices,
            "labels": [entry.label for entry in rows], "files": [entry.path for entry in rows]}


# ---------------------------------------------------------------------------------------------------------
# One size for all


def common_size(sizes: dict[tuple[int, int], int]) -> Fit:
    """The size for images of many sizes, {(height, width): how many}, and how most of them are brought to it.

    It is the one that most images have. Else, where nearly all sides are near the median ones: those, rounded up; or
    else a size about as long as the shorter sides, of the images' shape if nearly all have the same.
    """
    if len(sizes) == 1:
        return Fit(*next(iter(sizes)), "same")
    heights, widths = np.repeat(np.array(list(sizes)), list(sizes.values()), axis=0).T
    median = _median(heights), _median(widths)
    usual, count = max(sizes.items(), key=lambda item: (item[1], item[0]))
    near = _near(heights, median[0]) & _near(widths, median[1])
    how = "crop" if near.mean() >= NEARLY_ALL else "resize"
    if 2 * count > len(heights):
        return Fit(*usual, how)
    if how == "crop":
        return Fit(*(math.ceil(side / MULTIPLE) * MULTIPLE for side in median), how)
    ratio = _median(widths / heights)
    if _near(widths / heights, ratio).mean() < NEARLY_ALL:  # landscape and portrait
        ratio = 1.0
    side = min(_median(np.minimum(heights, widths)), MAX_SIDE)
    sides = side * max(1, 1 / ratio), side * max(1, ratio)
    return Fit(*(max(1, round(side / MULTIPLE)) * MULTIPLE for side in sides), how)


def fit_of(size: tuple[int, int], common: Fit) -> Fit:
    """How an image of this size comes to the common one."""
    if size == common[:2]:
        return common._replace(how="same")
    near = all(1 / CROPPED <= wanted / side <= CROPPED for side, wanted in zip(size, common))
    return common if common.how == "crop" and near else common._replace(how="resize")


def _median(values: np.ndarray) -> float:
    return np.sort(values)[len(values) // 2].item()


def _near(values: np.ndarray, middle: float) -> np.ndarray:
    return (values <= middle * NEAR) & (middle <= values * NEAR)


def _usual_size(root: str, order: list[Entry], reading: Reading) -> tuple[int, int] | None:
    """The commonest size of a few of the files."""
    sample = order[::math.ceil(len(order) / USUAL)]
    shapes = (decode.peek(os.path.join(root, entry.path), reading) for entry in sample)
    sizes = Counter(shape[1:3] for shape in shapes if shape)
    return sizes.most_common(1)[0][0] if sizes else None


def _size_notice(sizes: dict[tuple[int, int], int], fits: dict, common: Fit) -> list[str]:
    """A line on what was done to bring images to the common size, if anything was."""
    done = Counter()
    for size, count in sizes.items():
        done[fits[size].how] += count
    if done.keys() == {"same"}:
        return []
    words = {"same": "kept as they are", "crop": "cropped or padded about the middle", "resize": "resized and cropped"}
    told = ", ".join(f"{done[how]} {text}" for how, text in words.items() if done[how])
    (low, left), (high, right) = np.min(list(sizes), 0).tolist(), np.max(list(sizes), 0).tolist()
    return [f"sizes from {low}x{left} to {high}x{right} brought to {common.height}x{common.width}: {told} "
            f"({flag('IMAGE_SIZE')} {common.height}x{common.width} resizes all)"]


# ---------------------------------------------------------------------------------------------------------
# What a user should know


def _common_channels(shapes: list[Shape]) -> int:
    """1 if nearly all images are grey, or else 3."""
    images = Counter()
    for shape in shapes:
        images[shape.channels] += shape.count
    return 1 if images[3] <= (1 - NEARLY_ALL) * images.total() else 3


def _kind_notices(shapes: list[Shape], counted: bool, channels: int, reading: Reading) -> list[str]:
    """A line for each thing that sets a part of the files apart, or changes their brightness.

    counted: whether reading.value_range is that of the percentiles.
    """
    marks = Counter(mark for shape in shapes for mark in shape.marks)
    files = len(shapes)
    told = {"alpha": "have transparency: it becomes white", "animated": "are animated: only their first frame is used",
            "pages": "have pages of another size than the first: these are left out"}
    wide = sorted(marks.keys() - told.keys())
    notices = []
    if wide and reading.ends:
        kinds = ", ".join(f"{marks[mark]} of {files} files hold {mark}" for mark in wide)
        low, _, high = reading.value_range.partition(" ")
        how = f", percentiles {reading.nifti_low:g} and {reading.nifti_high:g} of them all ({flag('VALUE_RANGE')} " \
              f"sets others)" if counted else ""
        notices.append(f"{kinds}: {low} becomes black and {high} white{how}")
    coloured = sum(shape.channels == 3 for shape in shapes)
    if reading.channels == "auto" and 0 < coloured <= files / 2:
        all_become, other = ("grey", 3) if channels == 1 else ("RGB", 1)
        notices.append(f"{coloured} of {files} files are in colour, the others grey: all become {all_become} "
                       f"({flag('CHANNELS')} {other} decides otherwise)")
    return notices + [f"{marks[mark]} of {files} files {text}" for mark, text in told.items() if marks[mark]]


def _sameness(path: Path, count: int) -> list[str]:
    """A line if all images are the same, or many are blank: sets that nothing can be learnt from."""
    images = np.memmap(path, np.uint8, "r").reshape(count, -1)
    if count > 1 and all((image == images[0]).all() for image in images):
        return [f"all {count} images are the same" + ("" if images[0].any() else ", black")]
    blank = np.mean([(image == image[0]).all() for image in images[::math.ceil(count / SAMPLED)]])
    return [f"about {blank:.0%} of the images are blank, of a single value"] if blank >= BLANK else []


# ---------------------------------------------------------------------------------------------------------
# Decoding


def check_broken(root: str, broken: list[str], tried: int, reading: Reading) -> None:
    """UserError if more of the files tried are broken than MAX_UNREADABLE allows, or all."""
    if len(broken) > reading.max_unreadable * tried or len(broken) == tried:
        raise UserError(f"{len(broken)} of the {tried} image files in {root} cannot be decoded, more than the share of "
                        f"{reading.max_unreadable} that MAX_UNREADABLE ({flag('MAX_UNREADABLE')}) allows: "
                        f"{some(broken)}")


def _broken(tasks: list[Task], outcomes: list[list[Shape | str]]) -> list[str]:
    """The files that cannot be decoded, each with the reason."""
    return [f"{entry.path} ({outcome})" for task, part in zip(tasks, outcomes)
            for entry, outcome in zip(task.entries, part) if isinstance(outcome, str)]


def _shapes(outcomes: list[list[Shape | str]]) -> Iterator[Shape]:
    """The shapes of the files that can be decoded."""
    return (outcome for outcome in chain(*outcomes) if isinstance(outcome, Shape))


def _decode_tasks(tasks: list[Task]) -> tuple[list[list[Shape | str]], np.ndarray | None]:
    """What `_decode_chunk` returns for each of the tasks, done in processes, and the counts of all of them together."""
    outcomes, counts = [], None
    try:
        with devices.processes(len(tasks)) as pool, \
                Bar(desc="decoding", total=sum(len(task.entries) for task in tasks), unit="file") as bar:
            for part, counted in pool.map(_decode_chunk, tasks):
                outcomes.append(part)
                if counted:
                    counts = np.zeros(2**BIN_BITS, np.int64) if counts is None else counts
                    counts[counted[0]] += counted[1]
                bar.update(len(part))
        return outcomes, counts
    except BrokenProcessPool:
        task = tasks[len(outcomes)]
        raise UserError(f"a decoding process was killed, by too little memory or a file that breaks its decoder, at "
                        f"{os.path.join(task.root, task.entries[0].path)} or one of the next "
                        f"{len(task.entries) * devices.cores()}") from None


def _decode_chunk(task: Task) -> tuple[list[Shape | str], tuple[np.ndarray, np.ndarray] | None]:
    """Write the images of a task's files one after the other into its target. Returns for each file what it holds, or
    why it cannot be decoded; and the bins of the values counted, with their counts.
    """
    first = None if task.fits else FirstPass(task.usual)
    paths = [os.path.join(task.root, entry.path) for entry in task.entries]
    outcomes, seen = [], {}
    _read_ahead(paths)
    with open(task.target, "wb", buffering=2**20) as file, decode.strictly(), \
            open(task.earlier or os.devnull, "rb", buffering=2**20) as earlier:
        for path, known in zip(paths, task.known or repeat(None)):
            outcome, pixels, fit = known, None, None
            if isinstance(known, Shape):
                fit = task.fits[known[1:3]]
                if known.decoded:
                    pixels = earlier.read(math.prod((known.count, *(task.reading.size or known[1:3]), known.channels)))
            if known is None or fit and not (pixels and fit.how == "same"):
                outcome, pixels = decode.try_decode(path, task.reading, fit, first), None
                if not isinstance(outcome, str):
                    pixels, outcome = outcome
            if pixels is not None:
                file.write(pixels)
            outcomes.append(seen.setdefault(outcome, outcome))  # one object for all that are equal: pickled once
    if task.earlier:
        os.unlink(task.earlier)
    if first is None or first.counts is None:
        return outcomes, None
    numbers, = first.counts.nonzero()
    return outcomes, (numbers, first.counts[numbers])


def _read_ahead(paths: list[str], enough: int = 2**20) -> None:
    """Have the system fetch the files' first `enough` bytes together: a disk takes much longer one by one.

    Of cached files it would take a tenth of the decoding, so it does nothing if the first one is.
    """
    for path in paths if hasattr(os, "posix_fadvise") else []:
        with suppress(OSError), open(path, "rb", buffering=0) as file:
            if path == paths[0] and _is_cached(file.fileno()):
                return
            os.posix_fadvise(file.fileno(), 0, enough, os.POSIX_FADV_WILLNEED)


def _is_cached(file: int) -> bool:
    """Whether the first byte of an open file can be read without waiting for a disk; False where it cannot be told."""
    try:
        return bool(os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT))
    except (AttributeError, OSError):  # another system than Linux, or a file system without this flag
        return False


def _join(path: Path, tasks: list[Task], outcomes: list[list[Shape | str]],
          whole: tuple[int, int, int]) -> list[Entry]:
    """Join the pixels of all tasks in one file; returns the entry of each image.

    whole: height, width and channels of every image.
    """
    rows = []
    with open(path, "wb", buffering=2**20) as joined:
        for task, part in zip(tasks, outcomes):
            decoded = [(entry, shape) for entry, shape in zip(task.entries, part) if isinstance(shape, Shape)]
            rows += [entry for entry, shape in decoded for _ in range(shape.count)]
            with open(task.target, "rb", buffering=2**20) as source:
                if all(shape.channels == whole[2] for _, shape in decoded):
                    shutil.copyfileobj(source, joined, 2**20)  # as nearly always
                    decoded = []
                for _, shape in decoded:
                    pixels = np.frombuffer(source.read(shape.count * math.prod(whole[:2]) * shape.channels), np.uint8)
                    if shape.channels < whole[2]:
                        pixels = pixels.repeat(whole[2])
                    elif shape.channels > whole[2]:
                        pixels = decode.luminance(pixels.reshape(-1, 3))
                    joined.write(pixels)
            os.unlink(task.target)
        joined.flush()
        os.fsync(joined.fileno())
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
