"""files.py: a file is whole or not there, and a run's directory has one writer."""
import errno
import os
import shutil
import signal
import time

import faults
from conftest import continued

from running import files

# ---- atomic


def test_a_second_save_replaces_what_a_kill_left(tmp_path):
    (tmp_path / "vqvae.pt.tmp").write_bytes(b"half a checkpoint")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (tmp_path / "link.tmp").symlink_to(outside)
    for name in ("vqvae.pt", "link"):
        with files.atomic(tmp_path / name) as file:
            file.write(b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    assert outside.read_bytes() == b"precious" and not list(tmp_path.glob("*.tmp"))


class FullDisk:
    """A file on a disk with room for some bytes more."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_full_disk_leaves_the_last_checkpoint(script, copied, data_dir, monkeypatch):
    before = (copied / "vqvae.pt").read_bytes()

    def open_on_full_disk(path, mode):
        file = open(path, mode)
        return FullDisk(file, 50_000) if "x" in mode and "vqvae.pt" in str(path) else file
    monkeypatch.setattr(files, "open", open_on_full_disk, raising=False)
    outcome = continued(script, data_dir, copied)
    assert outcome.status == 1
    line = outcome.err.split("\r")[-1].strip()
    assert line == f"train_vqvae.py: error: No space left on device: {copied / 'vqvae.pt'}"
    assert (copied / "vqvae.pt").read_bytes() == before and not list(copied.rglob("*.tmp"))
    monkeypatch.undo()
    assert continued(script, data_dir, copied).status == 0  # there is room again


# ---- locks


def test_the_second_of_two_writers_is_refused_while_the_first_lives(script, cases):
    case = cases["vqvae"]
    output, log = case.new()
    first = faults.launch(case.script, case.of(output), log)
    while not log.exists() or "training for" not in log.read_text():
        assert first.is_alive()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGSTOP)
    for name in ("train_vqvae", "train_pixelcnn"):
        shutil.copy(case.whole / "vqvae.pt", output) if name == "train_pixelcnn" else None
        outcome = script(name, *(case.flags if name == "train_vqvae" else []), "--output-dir", output)
        assert outcome.status == 1
        assert outcome.err == f"{name}.py: error: another training is writing to {output}: wait for it, or choose " \
                              f"another --output-dir\n"
    first.kill()
    first.join()
    (output / "vqvae.pt").unlink()
    case.check_continues(output, log)
