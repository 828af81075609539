"""Files that are whole or not there, and directories that one process writes to at a time."""
import csv
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from running.cli import UserError


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes the name `path` only when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")  # always the same: what a crash leaves is replaced by the next one
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:  # never through a link that lies there
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say what was written
        raise
    if os.name == "posix":  # the new name outlives a power cut only once its directory is on disk too
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            with suppress(OSError):  # not every file system can flush a directory; the file itself is whole either way
                os.fsync(directory)
        finally:
            os.close(directory)


def write_csv(path: Path, rows: list[dict[str, Any]], end: str = "\n") -> None:
    """Write rows as CSV, with the columns that any of them has. end: of a line."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator=end)
    table.writeheader()
    table.writerows(rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))  # names of files may be no text


def remove(directory: Path, pattern: str) -> None:
    """Remove the files of a directory whose names match a pattern, in which * stands for a number: the directory may
    hold files of others too.
    """
    numbered = re.escape(pattern).replace(r"\*", r"\d+")
    for path in directory.glob(pattern):
        if re.fullmatch(numbered, path.name):
            path.unlink()


def lock_run(output_dir: str, hold: bool) -> BaseFileLock:
    """Hold a run's directory until the lock is released, or this process ends in whatever way.

    hold: whether this process is the one of its training that holds it. UserError if another training does. Where the
    file system has no locks, a line says so.
    """
    lock = FileLock(Path(output_dir) / ".lock")
    if not hold:
        return lock
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another training is writing to {output_dir}: wait for it, or choose another --output-dir"
                        ) from None
    except (IsADirectoryError, PermissionError):
        raise
    except OSError as error:  # some network file systems
        print(f"{output_dir} cannot be locked ({error.strerror}): let no other training write there", file=sys.stderr)
    return lock


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Let one process at a time into the block: the one that holds the lock on the file `path`.

    doing: what a waiting process says that the other one does. Without permission to lock, or on a file system that
    has no locks, every process is let in.
    """
    lock = FileLock(path)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:  # an OSError too
            print(f"waiting for another process that {doing}", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
