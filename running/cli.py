"""What every script does around its work: constants become flags, and bad input becomes one line.

A script's interface is the block of constants in capitals at its top. `run(main, globals())` gives each of
them a flag of the same name (`NUM_CODES` is `--num-codes`), with the remark beside it as the help text,
and calls `main` with the values. A constant of None is taken from the checkpoint of the stage before.
"""
import argparse
import ast
import io
import os
import re
import signal
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from running.rules import GROUPS, RULES, Rule

ROOT = Path(__file__).resolve().parent.parent
SIMPLE = (bool, int, float, str)
UNKNOWN = object()  # the value of a constant that is not a literal, and of a flag that is not given


class UserError(Exception):
    """Something the user can put right; its text is the one line they see."""


class Stopped(BaseException):
    """A signal told the script to end; not an Exception, so that no `except Exception` takes it for a failure."""

    def __init__(self, number: int, done: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{done}")
        self.number, self.status = number, 128 + number


def flag(name: str) -> str:
    """The flag of a constant: NUM_CODES is --num-codes."""
    return "--" + name.lower().replace("_", "-")


class Constant(NamedTuple):
    """A constant as a script's source has it."""

    source: str  # the expression that it is set to
    remark: str  # beside it, the text of --help
    place: str   # the line


def constants(path: Path) -> dict[str, Constant]:
    """The constants that a script assigns at its top level, by name, with those of the files from which it imports *:
    names in capitals that have a rule, or a remark and a plain value.
    """
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    remarks = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found, imported = {}, {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            imported |= constants(ROOT / f"{node.module.replace('.', '/')}.py")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name, remark = ast.unparse(target), remarks.get(node.end_lineno, "")
            if name.isupper() and (name in RULES or remark and type(_literal(ast.unparse(node.value))) in SIMPLE):
                place = f"line {node.lineno} of {os.path.relpath(path, ROOT)}"
                found[name] = Constant(ast.unparse(node.value), remark, place)
    return found | imported


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists every flag)\n")


def _literal(source: str) -> Any:
    """The value of an expression that is a literal; of any other one, which only the running script knows, UNKNOWN."""
    try:
        return ast.literal_eval(source)
    except ValueError:
        return UNKNOWN


def parse(script: dict[str, Any], argv: list[str] | None = None) -> argparse.Namespace:
    """The constants of a script, whose globals() these are, each overridden by its flag in argv, under their own names
    in capitals. A constant that the globals lack has the value in the source, if that is a literal.

    Exits with status 2 and one line on a wrong flag or a constant that its rule does not allow. None, and a word such
    as "auto", are allowed where the remark beside the constant names them.
    """
    name = Path(sys.argv[0]).name
    parser = _Parser(prog=name, usage=f"{name} [flags]", description=script["__doc__"], allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    found = constants(Path(script["__file__"]))
    for group, names in [*GROUPS.items(), ("more", found.keys() - RULES)]:
        titled = parser.add_argument_group(group) if names & found.keys() else None
        for name, (source, remark, _) in found.items():
            if name not in names:
                continue
            default = "from the checkpoint" if source == "None" else source
            boolean = {"action": argparse.BooleanOptionalAction} if RULES.get(name, Rule(str)).kind is bool \
                else {"metavar": "X"}
            titled.add_argument(flag(name), dest=name, default=UNKNOWN, help=f"{remark} [{default}]".replace("%", "%%"),
                                **boolean)
    given = vars(parser.parse_args(argv))
    args = argparse.Namespace()
    for name, (source, remark, place) in found.items():
        by_flag = given[name] is not UNKNOWN
        value = given[name] if by_flag else script[name] if name in script else _literal(source)
        rule = RULES.get(name) or Rule(type(_literal(source)))
        rule = rule._replace(words=tuple(word for word in rule.words if f'"{word}"' in remark))
        if value is not UNKNOWN and not (value is None and "None" in remark):
            try:
                value = rule.parse(value)
            except ValueError as error:
                parser.error(f"{name} ({flag(name)}) {error}" + ("" if by_flag else f": {place}, {name} = {source}"))
        setattr(args, name, value)
    return args


class Stream:
    """stdout or stderr. Once it cannot be written to, as its reader has gone or its disk is full, it goes nowhere: the
    work goes on.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream or open(os.devnull, "w")  # None: it was closed before the script began
        self.stream.reconfigure(errors="backslashreplace")  # a path may hold what the terminal cannot show

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._try(self.stream.write, text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable, *args: str) -> Any:
        try:
            return call(*args)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            return call(*args)


def run(main: Callable[[argparse.Namespace], None], script: dict[str, Any]) -> None:
    """Call main with the script's flags; what the user can put right becomes one line and exit status 1, and a
    SIGINT or SIGTERM one line and 130 or 143.
    """
    name = Path(sys.argv[0]).name
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Stream, streams)
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    problem, status, args = "", 0, None
    try:
        args = parse(script)
        main(args)
    except UserError as error:
        problem, status = f"error: {error}", 1
    except Stopped as stop:
        problem, status = str(stop), stop.status
    except OSError as error:  # a full disk, a directory without permission: the operating system's own words
        problem, status = f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1
    except (RuntimeError, MemoryError) as error:
        problem, status = f"error: {_explain(error, args)}", 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if status:
            print(f"{name}: {' '.join(problem.split())}", file=sys.stderr)
        sys.stdout.flush()
        sys.stdout, sys.stderr = streams
    if status:
        sys.exit(status)


def _stop(number: int, _frame: Any) -> NoReturn:
    raise Stopped(number)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the host's or the device's, did not suffice."""
    said = "out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED"  # the last by cuBLAS and cuDNN
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _explain(error: RuntimeError | MemoryError, args: argparse.Namespace | None) -> str:
    """One line for what torch could not do for want of memory or of another process; the error itself if neither."""
    text = str(error)
    if out_of_memory(error):
        return f"out of memory: try {_smaller(vars(args) if args else {})}"
    if "WORLD_SIZE" in os.environ and re.search("gloo|nccl|ProcessGroup|closed by peer|Connection re", text, re.I):
        return f"another process of this run has ended or is out of reach: {text.splitlines()[0][:200]}"
    raise error


def _smaller(constants: dict[str, Any]) -> str:
    """What takes less memory, by the constants that a script has."""
    if constants.get("BATCH_SIZE", 1) != 1:
        return f"a smaller {flag('BATCH_SIZE')}"
    names = [flag(name) for name in ("IMAGE_SIZE", "HIDDEN", "NUM_IMAGES") if name in constants]
    return f"a smaller {' or '.join(names)}" if names else "a machine with more of it, or --device cpu"
