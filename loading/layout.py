"""Which files of a folder are images, and of which split and class each one is.

docs/DATA.md has the rule as a table. In short: outer folders that hold everything are looked through; folders called
train, val or test are the splits; the first folders below are the classes, unless their names are those of subjects
(sub-01, patient_7). Where that does not decide, an error asks for CLASSES: "folders" makes the first folders classes
and leaves out what is in none, "none" takes all images without classes.

Files are put in the order of a hash of their relative path, or of their subject: the lowest tenth is the test split
where the folder names none, so a file never changes sides as others come and go; and the first N images of a split
are a draw by chance.
"""
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from loading.decode import SUFFIXES
from loading.tables import SUFFIXES as TABLES
from loading.tables import Labels
from loading.volumes import NIFTI, is_dicom
from running.cli import UserError, flag

ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
ORDER = ("validation", "train", "test")
WORDS = {"train": "train|training", "validation": "val|valid|validation|dev", "test": "test|testing"}
DECATHLON = {"train": "imagesTr", "validation": "imagesVal", "test": "imagesTs"}
SPLITS = {side: re.compile(rf"({words})([-_ ]?(set|data|images?))?|{DECATHLON[side]}", re.I)
          for side, words in WORDS.items()}  # the names of a split's folder
IMAGES = re.compile(r"(jpe?g)?(images?|imgs?)", re.I)
BESIDE_IMAGES = re.compile(r"labels?|masks?|segmentation(s|class|object)?|annotations?|ground[_ -]?truths?|gts?", re.I)
MASKS = re.compile(r"labels?[_-]?(tr|ts|val|train|test)", re.I)  # wherever they are
MASK_FILES = re.compile(r"[_-](d?seg|gt|mask|labels?|segmentation)\.nii(\.gz)?$", re.I)
SUBJECT = re.compile(r"(sub|subject|patient|participant|case)[-_ ]?\d\w*|sub-\w+", re.I)  # the name of its folder
SUBJECT_FILE = re.compile(r"sub-[a-zA-Z0-9]+(?=_)")  # the start of a file's name
NUMBERED = re.compile(r"\d{3}")  # in the name of a folder of NIfTI files: a subject's number
STRAYS = 0.05         # share of the files that may be in no folder where the others are; one always may
TEST_SHARE = 0.1      # of the files, where the folder has no test split
SHOWN = 10            # names in a message

# A directory that holds one of these is a run's ...
RUN_FILES = {"vqvae.pt", "vqvae_history.csv"}
PICTURE = "dataset.png"
SIGNATURE = "vqvae-pixelcnn: a data set"  # in that picture
SIGNED = {PICTURE: SIGNATURE.encode(), "samples.json": b'"TOP_P"'}  # ... or one of these with that text in it

Parts = dict[str, tuple[str, ...]]  # of each file the part of its path that is still to be understood


class Listing(NamedTuple):
    files: list[tuple[str, int, int]]  # relative path, size and time in ns of every file that is an image by its name
    left_out: list[str]                # lines: what else there is


class Entry(NamedTuple):
    """A file of a data set."""

    path: str   # within the folder
    side: str   # "validation", "train" or "test"
    label: int


class Arrangement(NamedTuple):
    order: list[Entry]        # in the order of the array: a validation split that the folder names, train, test
    class_names: list[str]
    subjects: dict[str, str]  # path to its subject, where the files of one are to stay together
    left_out: list[str]       # lines: what is left out, and why
    taken_for: list[str]      # lines: how the folder was interpreted, where that is not plain


def list_files(root: str, skip: Iterable[str] = ()) -> Listing:
    """Every file under root that is an image by its name. Hidden files, __MACOSX, the directories `skip` and those of
    runs are passed over.

    UserError if there is none, if root is itself a run's directory, or where a folder cannot be read
    or a symbolic link leads to a folder above it.
    """
    found, others, skipped = [], Counter(), []
    unwanted = set(map(os.path.realpath, skip)) - {os.path.realpath(root)}
    for here, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        inside = os.path.relpath(here, root).replace(os.sep, "/")
        above = f"{inside}/" if inside != "." else ""
        if run := _is_run(here, names):
            if not above:
                raise UserError(f"DATASET (--dataset): {root} is the directory of a run, whose samples and curves are "
                                f"no data: keep the images in a folder of their own")
        if run or os.path.realpath(here) in unwanted:
            skipped.append(inside)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for path in (os.path.join(here, name) for name in folders):
            if os.path.islink(path) and f"{os.path.realpath(here)}/".startswith(f"{os.path.realpath(path)}/"):
                raise UserError(f"{path} is a symbolic link to a folder above it: remove it")
        for name in names:
            if name.startswith("."):
                continue
            try:
                status = os.stat(os.path.join(here, name))
                image, state = stat.S_ISREG(status.st_mode), (status.st_size, status.st_mtime_ns)
            except OSError:  # a link to nothing, as decoding it will say
                image, state = True, (-1, 0)
            if image and (name.lower().endswith(SUFFIXES) or is_dicom(os.path.join(here, name))):
                found.append((above + name, *state))
            elif not name.lower().endswith(TABLES):
                others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(SHOWN))
    left_out = [f"left out, {what}: {which}" for what, which in (
        ("not images by their names", kinds),
        ("the files of runs and their data", some(sorted(skipped, key=natural)))) if which]
    if not found:
        packed = "; unpack the archives first" if others.keys() & ARCHIVES else ""
        raise UserError(f"DATASET (--dataset): there is no image in {root}, which may hold {' '.join(SUFFIXES)}"
                        + "".join(f"; {line}" for line in left_out) + packed)
    return Listing(found, left_out)


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: {error.strerror}") from None


def _is_run(here: str, names: list[str]) -> bool:
    """Whether a directory of these files holds what the scripts of this project write."""
    return bool(RUN_FILES.intersection(names)) or any(
        (path := Path(here, name)).is_file() and text in path.read_bytes()[:1000] for name, text in SIGNED.items())


def arrange(names: list[str], classes: str = "auto", studies: dict[str, str] | None = None,
            table: Labels | None = None) -> Arrangement:
    """What becomes of the files of these relative paths, by the rule above. classes: the constant CLASSES. studies: the
    study of files that state one; it stays together as a subject does. table: gives the classes where no folders do.

    UserError, which names CLASSES, where the rule does not decide.
    """
    masks = find_masks(names)
    parts = {name: tuple(name.split("/")) for name in names if name not in masks}
    if not parts:
        raise UserError("DATASET (--dataset): by their names all of its images are segmentation masks: rename the "
                        "folder or the files")
    outer, parts, outside = _look_through(parts)
    relative = {name: "/".join(part) for name, part in parts.items()}  # what the draw by chance goes by
    sides, parts, beside = _take_splits(parts, classes)
    subjects, labelled, apart = _take_classes(parts, sides, classes)
    by_table = table and classes == "auto" and not labelled
    if by_table:
        labelled = {name: table.by_path[name] for name in parts.keys() & table.by_path.keys() - apart}
        apart = apart | parts.keys() - labelled.keys()
    kept = parts.keys() - apart
    lost = {"segmentation masks by their names": masks, f"beside {outer}/, which holds nearly all": outside,
            "in no split": beside,
            "in no folder of a class or subject, or in no table": apart}
    left_out = [f"left out, {why}: {len(names)} files: {some(sorted(names, key=natural))}"
                for why, names in lost.items() if names]
    taken_for = [f"looked through {outer}/, which holds everything"] if outer else []
    taken_for += [table.told] if by_table else []
    if subjects and (by_table or not labelled):
        found = sorted(set(subjects.values()), key=natural)
        taken_for.append(f"subjects and not classes: {some(found)}, {len(found)} in all; a subject's images stay in "
                         f"one split; {flag('CLASSES')} folders takes folders for classes")
    subjects = (studies or {}) | subjects
    sides = {name: sides[name] for name in kept & sides.keys()}
    if sides and "train" not in sides.values():
        raise UserError(f"DATASET (--dataset): no training image is left ({'; '.join(left_out)}): `{flag('CLASSES')} "
                        f"none` takes all, without classes")

    units = {name: subjects.get(name, relative[name]) for name in kept}  # what stays together
    chance = {key: int(sha256(os.fsencode(key))[:12], 16) / 16**12
              for key in {*units.values(), *(relative[name] for name in kept)}}
    if "test" not in sides.values():  # draw it; one file or subject alone is cut later, if it is a volume
        drawn = sorted({units[name] for name in kept if sides.get(name) != "validation"}, key=chance.get)
        tests = {unit for unit in drawn if chance[unit] < TEST_SHARE} or set(drawn[:1] if len(drawn) > 1 else [])
        if tests:
            taken_for.append("no test split is given: a tenth is held out by a hash of the "
                             + ("subjects' or studies' names" if subjects else "paths"))
        sides |= {name: "test" for name in kept if units[name] in tests and sides.get(name) != "validation"}
    sides = {name: sides.get(name, "train") for name in kept}
    ordered = sorted(kept, key=lambda name: (ORDER.index(sides[name]), chance[units[name]], units[name],
                                             chance[relative[name]]))
    class_names = sorted(set(labelled.values()), key=natural)
    numbers = {name: number for number, name in enumerate(class_names)}
    order = [Entry(name, sides[name], numbers.get(labelled.get(name), 0)) for name in ordered]
    return Arrangement(order, class_names, subjects, left_out, taken_for)


def find_masks(names: list[str]) -> set[str]:
    """Those of the paths that are segmentation masks by their names."""
    folders = {tuple(parts[:depth]) for name in names for parts in [name.split("/")] for depth in range(1, len(parts))}
    with_images = {folder[:-1] for folder in folders if IMAGES.fullmatch(folder[-1])}
    of_masks = {folder for folder in folders if MASKS.fullmatch(folder[-1])
                or folder[:-1] in with_images and BESIDE_IMAGES.fullmatch(folder[-1])}
    found = set()
    for name in names:
        parts = tuple(name.split("/"))
        if MASK_FILES.search(name) or any(parts[:depth] in of_masks for depth in range(1, len(parts))):
            found.add(name)
    return found


def _look_through(parts: Parts) -> tuple[str, Parts, set[str]]:
    """Go down the folders that hold nearly everything: their path, what is below them, and the files beside them."""
    outer, outside = [], set()
    while len(folders := _folders(parts)) == 1:
        loose = _loose(parts)
        volumes = any(name.lower().endswith(NIFTI) for name in parts)
        if not _few(len(loose), len(parts)) or SUBJECT.fullmatch(folders[0]) and volumes:
            break
        outside |= loose
        outer += folders
        parts = {name: part[1:] for name, part in parts.items() if name not in loose}
    return "/".join(outer), parts, outside


def _take_splits(parts: Parts, classes: str) -> tuple[dict[str, str], Parts, set[str]]:
    """The split of each file, where folders name them, or {}; the paths without those folders; the files in none."""
    found = _splits(_folders(parts), classes)
    if found:
        beside = {name for name, part in parts.items() if part[0] not in found or len(part) == 1}
        if 2 * len(beside) <= len(parts):
            sides = {name: found[part[0]] for name, part in parts.items() if name not in beside}
            below = {}
            for folder, side in found.items():
                below |= _below({name: part[1:] for name, part in parts.items() if part[0] == folder}, side)
            return sides, {name: below[name] for name in sides}, beside
        if classes == "auto":
            raise _undecided(f"{_listed(found)} hold fewer images than what is beside them",
                             "each folder is a class, train and test too", "no classes and no splits")
        return {}, parts, set()
    sides = {name: side for name, part in parts.items() if len(part) > 2 and (side := _side(part[1]))}
    if {"train"} < set(sides.values()):  # below each class
        beside = parts.keys() - sides.keys()
        if _few(len(beside), len(parts)):
            return sides, {name: (parts[name][0], *parts[name][2:]) for name in sides}, beside
        if classes == "auto":
            raise _undecided("some of its folders hold train/ and test/, others do not",
                             "each is a class, its train/ and test/ taken together", "the same without classes")
    return {}, parts, set()


def _splits(folders: list[str], classes: str) -> dict[str, str]:
    """The split that each of these folders, side by side, is; {} if they are none."""
    exact = {folder: side for folder in folders if (side := _side(folder))}
    alike = {folder: side for folder in folders if (side := _side(folder) or _side_alike(folder))}
    several = {"train"} < set(alike.values())
    if several and exact == alike:
        return exact
    if classes == "auto" and len(folders) > 1 and (several or set(exact.values()) - {"train"}):
        raise _undecided(f"{_listed(alike)} may be splits or classes: call splits train/, val/ and test/, or",
                         "each folder is a class", "no classes and no splits")
    return {}


def _side(folder: str) -> str:
    """The split that a folder's name means; "" for none."""
    return next((side for side, names in SPLITS.items() if names.fullmatch(folder)), "")


def _side_alike(folder: str) -> str:
    """The split that a word in a folder's name, as in seg_train or trainA, may mean; "" for none."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder)]
    return next((side for side, names in WORDS.items() if set(words) & set(names.split("|"))), "")


def _below(parts: Parts, side: str) -> Parts:
    """The paths below a split's folder, without train/ in train/ or a folder images/ that holds everything."""
    while len(folders := _folders(parts)) == 1 and not _loose(parts) \
            and (_side(folders[0]) == side or IMAGES.fullmatch(folders[0])):
        parts = {name: part[1:] for name, part in parts.items()}
    return parts


def _take_classes(parts: Parts, sides: dict[str, str],
                  classes: str) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """The subject of each file that is of one; the class of each, {} if there are none; and the files in neither."""
    folders, loose = _folders(parts), _loose(parts)
    if classes == "folders" and not folders:
        raise UserError(f"CLASSES ({flag('CLASSES')}) is \"folders\", but there are none")
    if classes == "none" or not folders:
        return _subjects(parts, 0), {}, set()
    found = {folder for folder in folders if SUBJECT.fullmatch(folder)}
    if found and classes == "auto":
        apart = {name for name, part in parts.items() if part[0] not in found or len(part) == 1}
        if not _few(len(apart), len(parts)):
            raise _undecided(f"{_listed(found)} may be subjects, but other images are in none",
                             "each folder is a class", "no classes; a subject's images stay together")
        return _subjects({name: part for name, part in parts.items() if name not in apart}, 0), {}, apart
    inside = {name: part for name, part in parts.items() if name not in loose}
    subjects = _subjects(inside, 1)
    if classes == "auto":
        _check_classes(parts, sides, subjects)
    return subjects, {name: part[0] for name, part in inside.items()}, loose


def _check_classes(parts: Parts, sides: dict[str, str], subjects: dict[str, str]) -> None:
    """UserError if the first folders need not be classes. subjects: those below these folders."""
    folders, loose = _folders(parts), _loose(parts)
    for side in sorted(set(sides.values())) or [""]:
        of_side = {name for name in parts if sides.get(name, "") == side}
        if not _few(len(of_side & loose), len(of_side)):
            what = f"images of the {side} split" if side else "images"
            raise _undecided(f"{len(of_side & loose)} {what} are in no class folder, others are ({_listed(folders)})",
                             "folders are classes, the other images left out", "all images, without classes")
    alike = Counter(map(str.casefold, folders))
    if twins := [folder for folder in folders if alike[folder.casefold()] > 1]:
        raise _undecided(f"{_listed(twins)} differ in case alone: rename one to make them one, or",
                         "each is a class", "no classes")
    volumes = all(name.lower().endswith(NIFTI) for name in parts if name not in loose)
    if volumes and (not subjects or any(map(NUMBERED.search, folders))):
        raise _undecided(f"{_listed(folders)} hold NIfTI files and may be subjects or classes: call a subject's folder "
                         f"sub-NAME, or", "each folder is a class", "no classes")


def _subjects(parts: Parts, start: int) -> dict[str, str]:
    """The subject of each file that is of one: the first folder below `start` folders that is called like a subject's,
    or the start of a BIDS file name.
    """
    found = {}
    for name, part in parts.items():
        volume = name.lower().endswith(NIFTI)
        depth = next((depth for depth, folder in enumerate(part[:-1]) if depth >= start and
                      (SUBJECT.fullmatch(folder) or volume and NUMBERED.search(folder))), None)
        if depth is not None:
            found[name] = "/".join(part[:depth + 1])
        elif file := SUBJECT_FILE.match(part[-1]):
            found[name] = "/".join((*part[:start], file[0]))
    return found


def _folders(parts: Parts) -> list[str]:
    """The first folders of the paths."""
    return sorted({part[0] for part in parts.values() if len(part) > 1}, key=natural)


def _loose(parts: Parts) -> set[str]:
    """The paths that are in no folder."""
    return {name for name, part in parts.items() if len(part) == 1}


def _few(count: int, total: int) -> bool:
    """Whether so many files of a total are exceptions that say nothing about the rest."""
    return count <= max(1, STRAYS * total) and 2 * count < total or not count


def _undecided(what: str, folders: str, none: str) -> UserError:
    return UserError(f"DATASET (--dataset): {what}{'' if what.endswith(' or') else ':'} decide with "
                     f"`{flag('CLASSES')} folders` ({folders}) or `{flag('CLASSES')} none` ({none})")


def natural(name: str) -> tuple:
    """A key that sorts names as people do: a2 before a10, and case matters last."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold())
            for part in re.split(r"([0-9]+)", name) if part], name


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode(errors="surrogateescape") if isinstance(content, str) else content).hexdigest()


def some(names: list[str]) -> str:
    """The first few of the names, on one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return " ".join(("; ".join(names[:SHOWN]) + more).split())


def _listed(folders: Iterable[str]) -> str:
    """The first few folders, on one line."""
    return some([f"{folder}/" for folder in sorted(folders, key=natural)])
