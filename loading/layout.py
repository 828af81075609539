"""Which files of a folder are images, and of which split and class each one is.

The rule, for the paths of image files `x` below the folder; docs/DATA.md has it as a table for users:

x                                  no classes
cat/x  dog/deeper/x                classes cat and dog, numbered names in the order of their numbers
outer/...                          alone or nearly so: looked through, as often as needed
train/...  val/...  test/...       the splits, in many spellings: training_set, imagesTr, seg_train, Test; without val
                                   or test some of train is held out; what is beside them is left out
train/train/...  train/images/...  looked through
cat/train/x  cat/test/x            classes with splits below
train/cat/x  test/Cat/x            one class: across splits names may differ in case
train/cat/x  test/dog/x            two classes, of which dog has no training image
sub-01/...  patient_7/...          subjects, which are not classes: their files stay on one side of a split; so are
                                   folders of a few NIfTI files each, if their names hold three digits in a row, or if
                                   there are ten; and below a class: cat/sub-01/x
labelsTr/x                         segmentation masks, never images: also masks/ or labels/ beside images/, and
                                   y_seg.nii beside other NIfTI files
.x  __MACOSX/x  a run's directory  never images

One file, or a twentieth of them, may contradict this in that it is in no folder where the others are, or the reverse:
it is left out and named. Where more do, or where the rule does not decide, there is an error, and CLASSES decides:
"folders" makes the first folders classes and leaves out what is in none, "none" takes all files without classes.
Undecidable are train/cat/x beside test/x; test/ without train/; Cat/ beside cat/; a few folders 1/ and 2/ of a few
NIfTI files each.

Files are put in the order of a hash of their relative path, or of their subject: the lowest tenth is the test split
where the folder names none, so a file never changes sides as others come and go; and the first N images of a split
are a draw by chance.
"""
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

from loading.decode import NIFTI, SUFFIXES
from running.cli import UserError, flag

SPLITS = {"train": {"train", "training"}, "validation": {"val", "valid", "validation", "dev"},
          "test": {"test", "testing"}}  # the word in the name of a split's folder
NEUTRAL = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "folder"}  # what may stand beside it
IMAGES = re.compile(r"(jpe?g)?(images?|imgs?)", re.I)
BESIDE_IMAGES = re.compile(r"labels?|masks?|segmentation(s|class|object)?|annotations?|ground[_ -]?truths?|gts?", re.I)
MASKS = re.compile(r"labels?[_-]?(tr|ts|val|train|test)", re.I)  # wherever they are
MASK_FILES = re.compile(r"[_-](d?seg|gt|mask|labels?|segmentation)\.nii(\.gz)?$", re.I)
SUBJECT = re.compile(r"(sub|subj|subject|patient|participant|case)[-_ ]?\d\w*|sub-\w+", re.I)  # whatever it holds
NUMBERED = re.compile(r"\d{3}")  # in a folder of a few NIfTI files: a subject's number
SUBJECT_FILES = 20    # NIfTI files that a subject's folder holds at most, most of them
SUBJECTS = 10         # from so many folders on, of a few NIfTI files each, they are subjects whatever their names
STRAYS = 0.05         # share of the files that may contradict the rest; one always may
TEST_SHARE = 0.1      # of the files, where the folder has no test split
SHOWN = 10            # names in a message

# A directory that holds one of these is a run's ...
RUN_FILES = {"vqvae.pt", "vqvae_history.csv"}
PICTURE = "dataset.png"
SIGNATURE = "vqvae-pixelcnn: a data set"  # in that picture
SIGNED = {PICTURE: SIGNATURE.encode(), "samples.json": b'"TOP_P"'}  # ... or one of these with that text in it


class Listing(NamedTuple):
    files: list[tuple[str, int, int]]  # relative path, size and time in ns of every file that is an image by its name
    others: str                        # in words, what other files there are
    skipped: list[str]                 # directories that were passed over, as they are a run's or hold its data


class Arrangement(NamedTuple):
    order: list[tuple[str, bool, int]]  # path, whether it is of the test split, label: in the order of the array
    class_names: list[str]
    validation: set[str]                # paths of a validation split that the folder names; they come first
    subjects: dict[str, str]            # path to its subject, where the files of one are to stay together
    left_out: list[str]                 # lines: what is left out, and why
    taken_for: list[str]                # lines: how the folder was interpreted, where that is not plain


def list_files(root: str, skip: Iterable[str] = ()) -> Listing:
    """Every file under root that is an image by its name. Hidden files, __MACOSX, the directories `skip` and those of
    runs are passed over.

    UserError if there is none, if root is itself a run's directory, or where a folder cannot be read
    or a symbolic link leads into a loop.
    """
    found, others, skipped = [], Counter(), []
    unwanted = {identity for path in skip if (identity := _identity(path))}
    todo = [("", frozenset())]  # a folder's relative path, and the identities of the folders above it
    while todo:
        inside, above = todo.pop()
        try:
            here = os.path.join(root, inside)
            status = os.stat(here)
            identity = status.st_dev, status.st_ino
            if identity in above:
                raise UserError(f"{here} is a symbolic link to a folder above it: remove it")
            entries = list(os.scandir(here))
            run = _is_run(entries)
            if run and not inside:
                raise UserError(f"DATASET (--dataset): {root} is the directory of a run, whose samples and curves are "
                                f"no data: keep the images in a folder of their own")
            if inside and (run or identity in unwanted):
                skipped.append(inside)
                continue
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith(".") or entry.name == "__MACOSX":
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
        but = f", only {kinds}" if kinds else ""
        but += f" (passed over, of runs or their data: {some(skipped)})" if skipped else ""
        raise UserError(f"DATASET (--dataset): there is no image in {root}{but}: it may hold {' '.join(SUFFIXES)}")
    return Listing(found, kinds, sorted(skipped, key=natural))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
        return status.st_dev, status.st_ino
    except OSError:
        return None


def _is_run(entries: list[os.DirEntry]) -> bool:
    """Whether a directory of these entries holds what the scripts of this project write."""
    there = {entry.name: entry for entry in entries}
    for name in SIGNED.keys() & there.keys():
        if there[name].is_file():
            with open(there[name].path, "rb") as file:
                if SIGNED[name] in file.read(1000):
                    return True
    return bool(RUN_FILES & there.keys())


def arrange(names: list[str], classes: str = "auto") -> Arrangement:
    """What becomes of the files of these relative paths, by the rule above. classes: the constant CLASSES.

    UserError, which names CLASSES, where the rule does not decide.
    """
    left_out, taken_for = [], []

    def leave(lost: Iterable[str], why: str) -> None:
        lost = sorted(lost, key=natural)
        if lost:
            left_out.append(f"left out, {why}: {len(lost)} files ({_where(lost)})")
        for name in lost:
            del parts[name]

    parts = {name: tuple(name.split("/")) for name in names}  # the part of each path that is still to be understood
    leave(find_masks(names), "segmentation masks by their names")
    if not parts:
        raise UserError("DATASET (--dataset): by their names all of its images are segmentation masks: rename the "
                        "folder or the files")
    outer = _look_through(parts, leave)
    if outer:
        taken_for.append(f"looked through {outer}/, which holds everything")
    relative = {name: "/".join(part) for name, part in parts.items()}  # what the draw by chance goes by
    sides = _take_splits(parts, classes, leave, taken_for)
    subjects, labelled = _take_classes(parts, sides, classes, outer, leave, taken_for)
    sides = {name: sides[name] for name in parts if name in sides}
    if sides and "train" not in sides.values():
        raise UserError(f"DATASET (--dataset): no training image is left ({'; '.join(left_out)}): `{flag('CLASSES')} "
                        f"none` takes all, without classes")

    class_names = sorted(set(labelled.values()), key=natural)
    numbers = {name: number for number, name in enumerate(class_names)}
    chance = {key: int(sha256(os.fsencode(key))[:12], 16) / 16**12
              for key in {*subjects.values(), *(relative[name] for name in parts)}}
    units = {name: subjects.get(name, relative[name]) for name in parts}
    if "test" not in sides.values():  # draw it; one file or subject alone is cut later, if it is a volume
        drawn = sorted({units[name] for name in parts if sides.get(name) != "validation"}, key=chance.get)
        tests = {unit for unit in drawn if chance[unit] < TEST_SHARE} or set(drawn[:1] if len(drawn) > 1 else [])
        if tests:
            taken_for.append("no test split is given: a tenth is held out by a hash of the "
                             + ("subjects' names" if subjects else "paths"))
        sides |= {name: "test" for name in parts if units[name] in tests and sides.get(name) != "validation"}
    rank = {"validation": 0, "train": 1, "test": 2}
    ordered = sorted(parts, key=lambda name: (rank[sides.get(name, "train")], chance[units[name]], units[name],
                                              chance[relative[name]]))
    order = [(name, sides.get(name) == "test", numbers.get(labelled.get(name), 0)) for name in ordered]
    return Arrangement(order, class_names, {name for name in parts if sides.get(name) == "validation"}, subjects,
                       left_out, taken_for)


def find_masks(names: list[str]) -> list[str]:
    """Those of the paths that are segmentation masks by their names."""
    folders = defaultdict(set)  # to the folders in each folder
    files = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        files[folder].append(file)
    for folder in list(files):
        while folder:
            above, _, last = folder.rpartition("/")
            folders[above].add(last)
            folder = above
    beside_images = {above for above, inside in folders.items() if any(map(IMAGES.fullmatch, inside))}

    def holds_masks(folder: str) -> bool:
        above, _, last = folder.rpartition("/")
        return bool(MASKS.fullmatch(last) or above in beside_images and BESIDE_IMAGES.fullmatch(last)) \
            or bool(above) and holds_masks(above)

    found = []
    for folder, inside in files.items():
        prefix = f"{folder}/" if folder else ""
        if folder and holds_masks(folder):
            found += [prefix + file for file in inside]
        elif not all(MASK_FILES.search(file) for file in inside if file.lower().endswith(NIFTI)):
            found += [prefix + file for file in inside if MASK_FILES.search(file)]
    return found


def _look_through(parts: dict[str, tuple[str, ...]], leave: Callable) -> str:
    """Go down the folders that hold nearly everything; returns their path."""
    outer = []
    while True:
        folders, loose = _folders(parts), _loose(parts)
        if len(folders) != 1 or not _few(len(loose), len(parts)) or (
                SUBJECT.fullmatch(folders[0]) and any(name.lower().endswith(NIFTI) for name in parts)):
            return "/".join(outer)
        leave(loose, f"beside {folders[0]}/, which holds nearly all")
        outer += folders
        for name, part in parts.items():
            parts[name] = part[1:]


def _take_splits(parts: dict[str, tuple[str, ...]], classes: str, leave: Callable,
                 taken_for: list[str]) -> dict[str, str]:
    """The split of each file, where folders name them, which are taken out of `parts`; {} where none does."""
    folders = _folders(parts)
    found = _splits(folders, classes)
    if not found:
        second = {folder: set() for folder in folders}
        for part in parts.values():
            if len(part) > 2:
                second[part[0]].add(part[1])
        inner = {folder: _splits(sorted(below), "folders") for folder, below in second.items()}
        if not any(inner.values()):
            if any(_side(folder) == ("train", ()) for folder in folders) and len(folders) > 1:
                taken_for.append("train/ is taken for a class, as there is no test/ beside it")
            return {}
        loose = [name for name, part in parts.items() if len(part) < 3 or part[1] not in inner[part[0]]]
        if not _few(len(loose), len(parts)):
            if classes == "auto":
                raise UserError(_undecided("some of its folders hold train/ and test/, others do not",
                                           "each is a class, its train/ and test/ taken together",
                                           "the same without classes"))
            return {}
        leave(loose, "in no split")
        sides = {name: inner[part[0]][part[1]] for name, part in parts.items()}
        for name, part in parts.items():
            parts[name] = (part[0], *part[2:])
        return sides

    beside = [name for name, part in parts.items() if part[0] not in found or len(part) == 1]
    if 2 * len(beside) > len(parts):
        if classes == "auto":
            raise UserError(_undecided(f"{_listed(found)} hold fewer images than what is beside them",
                                       "each folder is a class, train and test too", "no classes and no splits"))
        return {}
    leave(beside, f"beside {_listed(found)} and so in no split")
    sides = {name: found[part[0]] for name, part in parts.items()}
    below = {}
    for folder, side in found.items():
        inside = {name: part[1:] for name, part in parts.items() if part[0] == folder}
        while len(again := _folders(inside)) == 1 and not _loose(inside) \
                and (_side(again[0])[0] == side or IMAGES.fullmatch(again[0])):
            inside = {name: part[1:] for name, part in inside.items()}
        below |= inside
    parts.update(below)
    return sides


def _splits(folders: list[str], classes: str) -> dict[str, str]:
    """The split that each of these folders, side by side, is; {} if they are none."""
    by_rest = defaultdict(dict)  # what else the names say: train and test must agree in that
    for folder in folders:
        side, rest = _side(folder)
        if side:
            by_rest[rest][folder] = side
    pairs = [found for found in by_rest.values() if "train" in found.values() and len(set(found.values())) > 1]
    sides = {side for found in by_rest.values() for side in found.values()}
    if len(pairs) == 1 and (len(by_rest) == 1 or pairs[0] is by_rest.get(())):
        return pairs[0]
    lone = [folder for folder, side in by_rest.get((), {}).items() if side != "train"]
    if classes == "auto" and len(folders) > 1 and (lone or "train" in sides and len(sides) > 1):
        found = [folder for found in by_rest.values() for folder in found]
        raise UserError(_undecided(f"{_listed(found)} may be splits or classes" if "train" in sides else
                                   f"{_listed(lone)} may be a split, but there is no train/ beside it",
                                   "each folder is a class", "no classes and no splits"))
    return {}


def _side(folder: str) -> tuple[str, tuple[str, ...]]:
    """The split that a folder's name means, "" for none, and what other words it has."""
    if decathlon := re.fullmatch(r"images?[_-]?(tr|ts|val)", folder, re.I):
        return {"tr": "train", "ts": "test"}.get(decathlon[1].lower(), "validation"), ()
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", folder)]
    sides = [side for word in words for side, names in SPLITS.items() if word in names]
    if len(sides) != 1:
        return "", ()
    return sides[0], tuple(word for word in words if word not in SPLITS[sides[0]] | NEUTRAL)


def _take_classes(parts: dict[str, tuple[str, ...]], sides: dict[str, str], classes: str, outer: str,
                  leave: Callable, taken_for: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The subject of each file that is of one, and the class of each file; {} if there are none."""
    loose, total = _loose(parts), len(parts)
    if classes == "none" or total == len(loose):
        if classes == "folders" and outer:
            return _subjects(parts, 0), dict.fromkeys(parts, outer.rpartition("/")[2])
        if classes == "folders":
            raise UserError(f"CLASSES ({flag('CLASSES')}) is \"folders\", but there are none")
        return _subjects(parts, 0, _few_files_each(parts) and len(_folders(parts)) >= SUBJECTS), {}
    if classes == "auto" and (found := _subject_folders(parts)):
        leave([name for name, part in parts.items() if part[0] in ("derivatives", "sourcedata") and len(part) > 1],
              "BIDS folders of what was derived from the images")
        others = [name for name, part in parts.items() if part[0] not in found or len(part) == 1]
        if not _few(len(others), len(parts)):
            raise UserError(_undecided(f"{_listed(found)} may be subjects, but other images are in none",
                                       "each folder is a class", "no classes; a subject's images stay together"))
        leave(others, "beside the subjects' folders, which hold nearly all")
        taken_for.append(f"subjects and not classes: {_listed(found)}, {len(found)} in all; a subject's images stay in "
                         f"one split; {flag('CLASSES')} folders takes them for classes")
        return _subjects(parts, 0, True), {}
    if classes == "auto" and _few(total - len(loose), total):
        leave(set(parts) - set(loose), "in folders, while nearly all are in none")
        return _subjects(parts, 0), {}
    for side in sorted(set(sides.values())):
        of_side = [name for name in parts if sides[name] == side]
        if of_side and not set(of_side) - set(loose):
            if classes == "auto":
                held = ", some of train takes their place" if side != "train" else ""
                raise UserError(_undecided(f"the {len(of_side)} images of the {side} split are in no class folder, "
                                           f"others are", f"leaves these out{held}", "all images, without classes"))
            leave(of_side, f"{side} images in no class folder")
    loose = _loose(parts)
    if not _few(len(loose), len(parts)) and classes == "auto":
        raise UserError(_undecided(f"{len(loose)} images are in no folder, {len(parts) - len(loose)} are in folders "
                                   f"({_listed(_folders(parts))})", "folders are classes, the other images left out",
                                   "all images, without classes"))
    leave(loose, "in no class folder")
    return _subjects(parts, 1), _spell(parts, sides, classes, taken_for)


def _subject_folders(parts: dict[str, tuple[str, ...]]) -> list[str]:
    """Those of the first folders that are subjects. UserError where that is undecidable."""
    folders = _folders(parts)
    found = [folder for folder in folders if SUBJECT.fullmatch(folder)]
    if found or not _few_files_each(parts):
        return found
    if len(folders) >= SUBJECTS:
        return folders
    if found := [folder for folder in folders if NUMBERED.search(folder)]:
        return found
    if len(folders) > 1 and len({re.sub(r"\d+", "", folder) for folder in folders}) == 1:
        raise UserError(_undecided(f"{_listed(folders)} hold a few NIfTI files each and may be subjects or classes",
                                   "each folder is a class", "no classes"))
    return []


def _few_files_each(parts: dict[str, tuple[str, ...]]) -> bool:
    """Whether all that is in folders is NIfTI, and most of the first folders hold but a few files."""
    counts = Counter(part[0] for part in parts.values() if len(part) > 1)
    return bool(counts) and median(counts.values()) <= SUBJECT_FILES \
        and all(name.lower().endswith(NIFTI) for name, part in parts.items() if len(part) > 1)


def _subjects(parts: dict[str, tuple[str, ...]], start: int, first: bool = False) -> dict[str, str]:
    """The subject of each file that is of one: the first folder below `start` folders that is a subject's, or the
    start of a BIDS file name. first: the folder after those is a subject, whatever its name.
    """
    held = Counter(part[:depth] for name, part in parts.items() if name.lower().endswith(NIFTI)
                   for depth in range(1, len(part)))
    found = {}
    for name, part in parts.items():
        for depth in range(start, len(part) - 1):
            if first and depth == start or SUBJECT.fullmatch(part[depth]) or (
                    NUMBERED.search(part[depth]) and 0 < held[part[:depth + 1]] <= SUBJECT_FILES):
                found[name] = "/".join(part[:depth + 1])
                break
        else:
            if bids := re.match(r"sub-[a-zA-Z0-9]+(?=_)", part[-1]):
                found[name] = "/".join((*part[:start], bids[0]))
    return found


def _spell(parts: dict[str, tuple[str, ...]], sides: dict[str, str], classes: str,
           taken_for: list[str]) -> dict[str, str]:
    """The class of each file, which is called as its folder in train is where other splits spell it otherwise."""
    spellings = defaultdict(lambda: defaultdict(set))
    for name, part in parts.items():
        spellings[part[0].casefold()][sides.get(name, "train")].add(part[0])
    called = {}
    for by_side in spellings.values():
        every = sorted(set().union(*by_side.values()))
        called |= {spelling: spelling for spelling in every}
        if len(every) == 1:
            continue
        if all(len(these) == 1 for these in by_side.values()):
            [chosen] = by_side["train"] if "train" in by_side else next(iter(by_side.values()))
            called |= dict.fromkeys(every, chosen)
            taken_for.append(f"{' and '.join(every)} differ in case alone and are one class")
        elif classes == "auto" and any(len(spelling) > 1 for spelling in every):  # letters: a and A are two classes
            raise UserError(_undecided(f"{_listed(every)} differ in case alone", "each is a class: rename one to make "
                                       "them one", "no classes"))
    return {name: called[part[0]] for name, part in parts.items()}


def _folders(parts: dict[str, tuple[str, ...]]) -> list[str]:
    """The first folders of the paths."""
    return sorted({part[0] for part in parts.values() if len(part) > 1}, key=natural)


def _loose(parts: dict[str, tuple[str, ...]]) -> list[str]:
    """The paths that are in no folder."""
    return [name for name, part in parts.items() if len(part) == 1]


def _few(count: int, total: int) -> bool:
    """Whether so many files of a total are exceptions that say nothing about the rest."""
    return count <= max(1, STRAYS * total) and 2 * count < total or not count


def _undecided(what: str, folders: str, none: str) -> str:
    return f"DATASET (--dataset): {what}: decide with `{flag('CLASSES')} folders` ({folders}) or " \
           f"`{flag('CLASSES')} none` ({none})"


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
    folders = [f"{folder}/" for folder in sorted(folders, key=natural)]
    return some(folders if len(folders) <= SHOWN else [*folders[:3], f"... {folders[-1]}"])


def _where(names: list[str]) -> str:
    """The files, or of many their folders."""
    counts = Counter(name.rpartition("/")[0] for name in names)
    return some(names if len(names) <= SHOWN else [f"{count} in {folder or 'the folder'}{'/' * bool(folder)}"
                                                   for folder, count in counts.items()])
