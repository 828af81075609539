"""Which files of a folder are images, and of which split and class each one is.

The folder may be flat or hold one subfolder per class, and may have `train` and `test` above them. Files are put in
the order of a hash of their relative path: the lowest tenth is the test split where the folder names none, so a file
never changes sides as others come and go; and the first N images of a split are a draw by chance.
"""
import hashlib
import os
from collections import Counter

from cli import UserError
from decode import SUFFIXES

SPLITS = {"train": {"train", "training"}, "test": {"test", "testing"}}  # what their folders are called, in any case
VALIDATION = {"val", "valid", "validation"}  # beside `train`, neither a class nor a test split
TEST_SHARE = 0.1      # of the files, where the folder has no test split
SHOWN = 10            # names in a message


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
    chance = {name: int(digest(os.fsencode(name))[:12], 16) / 16**12 for name in names}
    names = sorted(names, key=chance.get)
    if "test" in sides.values():
        tests = {name for name in names if sides[name.split("/")[0]] == "test"}
    else:
        tests = {name for name in names if chance[name] < TEST_SHARE} or {names[0]}
    class_names = sorted({parts[0] for parts in classes.values() if parts}) if all(classes.values()) else []
    numbers = {name: number for number, name in enumerate(class_names)}
    order = [(name, name in tests, numbers[classes[name][0]] if numbers else 0) for name in names]
    return sorted(order, key=lambda entry: entry[1]), class_names, stray


def digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode(errors="surrogateescape") if isinstance(content, str) else content).hexdigest()


def some(names: list[str]) -> str:
    """The first few of the names, on one line."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return " ".join(("; ".join(names[:SHOWN]) + more).split())
