"""The first import of every script: it answers --help, wrong flags and Ctrl-C before torch, in seconds, is loaded."""
import ast
import itertools
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from running import cli


def _stop(number: int, _frame: Any) -> NoReturn:
    """What a script has written so far is nothing, so it ends at once."""
    os.write(2, f"{Path(sys.argv[0]).name}: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


BEFORE_FLAGS = {"compare": "--runs", "results": "--tables"}  # what may stand before all flags, words of one flag


def begin(script: Path) -> None:
    """Read the flags of a script that is being run: cli.run reads them again, where its own constants are set."""
    while os.open(os.devnull, os.O_RDWR) < 2:  # a standard stream that is closed is no place for the script's files
        pass
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    if words and script.stem == "dataset":  # it takes a data set before its flags
        sys.argv.insert(1, "--dataset")
    if words and script.stem in BEFORE_FLAGS:
        sys.argv[1:1 + len(words)] = [BEFORE_FLAGS[script.stem], shlex.join(words)]
    if script.stem == "dataset":  # it has its constants elsewhere
        script = script.parent / "loading" / "look.py"
    cli.parse({"__file__": str(script), "__doc__": ast.get_docstring(ast.parse(script.read_text("utf-8")))})


_script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
if _script.parent == cli.ROOT and _script.is_file():  # and no code from a pipe
    begin(_script)
