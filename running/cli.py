"""What every script does around its work: constants become flags, and bad input becomes one line.

A script's interface is the block of constants in capitals at its top. `run(main, globals())` gives each of
them a flag of the same name (`NUM_CODES` is `--num-codes`), with the remark beside it as the help text,
and calls `main` with the values. A constant of None is taken from the checkpoint of the stage before.
"""
import argparse
import ast
import io
import math
import os
import re
import signal
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """Something the user can put right; its text is the one line they see."""


class Stopped(BaseException):
    """A signal told the script to end; not an Exception, so that no `except Exception` takes it for a failure."""

    def __init__(self, number: int, done: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{done}")
        self.number, self.status = number, 128 + number


class Rule(NamedTuple):
    """What a constant may be: its type, and bounds, a list of choices or a pattern.

    words: texts that a number may be instead.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    choices: tuple = ()
    odd: bool = False
    pattern: str = ""
    words: tuple = ()

    def parse(self, value: Any) -> Any:
        """The value (a flag's text, or a constant as the script has it) checked; ValueError says what is wrong."""
        if value in self.words and isinstance(value, str):
            return value
        words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
        words[self.kind] = " or ".join([words[self.kind], *self.words])
        if isinstance(value, str) and self.kind in (int, float):
            try:
                value = self.kind(value)
            except ValueError:
                raise ValueError(f"must be {words[self.kind]}, not {value!r}") from None
        if self.kind in (float, str) and type(value) is int:
            value = self.kind(value)
        if type(value) is not self.kind:
            raise ValueError(f"must be {words[self.kind]}, not {value!r}")
        if self.kind is str and value != value.encode(errors="replace").decode():
            raise ValueError(f"must be text in UTF-8, not {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"must be one of {', '.join(map(str, self.choices + self.words))}, not {value!r}")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise ValueError(f"must match {self.pattern}, not {value!r}")
        if self.odd and value % 2 == 0:
            raise ValueError(f"must be odd, not {value}")
        if self.kind in (int, float):
            if not math.isfinite(value):
                raise ValueError(f"must be finite, not {value}")
            if value < self.low:
                raise ValueError(f"must be at least {self.low}, not {value}")
            if value > self.high:
                raise ValueError(f"must be at most {self.high}, not {value}")
            if value <= self.above:
                raise ValueError(f"must be above {self.above}, not {value}")
        return value


NUMBER = r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?"

# A constant means the same in every script, so its rule is written once. One without a rule is held to its type.
RULES = {
    "DATASET": Rule(str, pattern=".+"),
    "DATA_DIR": Rule(str, pattern=".+"),
    "OUTPUT_DIR": Rule(str, pattern=".+"),
    "PRETRAINED": Rule(str),
    "SHARED_DIR": Rule(str, pattern=".+"),
    "SAMPLES_DIR": Rule(str),
    "AGAINST": Rule(str),
    "LIMIT": Rule(int, low=0),
    "IMAGE_SIZE": Rule(str, pattern=r"auto|[1-9]\d{0,3}(x[1-9]\d{0,3})?"),
    "CHANNELS": Rule(int, choices=(1, 3), words=("auto",)),
    "NIFTI_AXIS": Rule(int, choices=(0, 1, 2)),
    "NIFTI_SCALE": Rule(str, choices=("slice", "volume", "folder")),
    "VALUE_RANGE": Rule(str, pattern=rf"auto|{NUMBER} {NUMBER}"),
    "NIFTI_LOW": Rule(float, low=0, high=100),
    "NIFTI_HIGH": Rule(float, low=0, high=100),
    "MAX_UNREADABLE": Rule(float, low=0, high=1),
    "CLASSES": Rule(str, choices=("auto", "folders", "none")),
    "EPOCHS": Rule(int, low=1, words=("auto",)),
    "BATCH_SIZE": Rule(int, low=1, words=("auto",)),
    "LEARNING_RATE": Rule(float, above=0, high=10),
    "OPTIMIZER": Rule(str, choices=("muon", "adam"), words=("auto",)),
    "WEIGHT_DECAY": Rule(float, low=0, high=10),
    "SEED": Rule(int, low=0, high=2**63 - 1),
    "DEVICE": Rule(str, pattern=r"auto|cpu|mps|cuda(:\d+)?"),
    "DOWNSAMPLE": Rule(int, choices=(2, 4, 8, 16)),
    "LEVELS": Rule(int, choices=(1, 2)),
    "LEVEL": Rule(str, choices=("all", "coarse", "fine")),
    "HIDDEN": Rule(int, low=2, high=8192, words=("auto",)),
    "RESIDUAL_BLOCKS": Rule(int, low=0, high=100),
    "RESIDUAL_HIDDEN": Rule(int, low=1, high=8192),
    "NUM_CODES": Rule(int, low=2, high=32768, words=("auto",)),
    "CODE_DIM": Rule(int, low=2, high=8192),
    "ARCHITECTURE": Rule(str, choices=("space-to-depth", "paper"), words=("auto",)),
    "CODEBOOK": Rule(str, choices=("ema", "gradient")),
    "EMA_DECAY": Rule(float, low=0, high=0.999999),
    "COMMITMENT_COST": Rule(float, low=0),
    "ADVERSARIAL": Rule(float, low=0, high=100),
    "PERCEPTUAL": Rule(float, low=0, high=100),
    "ADVERSARIAL_START": Rule(float, low=0, high=0.99),
    "REVIVE_BELOW": Rule(float, low=0, high=0.5),
    "LATENT_DIM": Rule(int, low=1, high=8192),
    "BETA": Rule(float, above=0),
    "LAYERS": Rule(int, low=1, high=1000, words=("auto",)),
    "KERNEL_SIZE": Rule(int, low=3, high=31, odd=True),
    "PRIOR": Rule(str, choices=("pixelcnn", "transformer", "masked")),
    "HEADS": Rule(int, low=1, high=1024),
    "DROPOUT": Rule(float, low=0, high=0.9),
    "AUGMENT": Rule(str, choices=("none", "flip", "shift", "flip shift")),
    "CLASS_DROPOUT": Rule(float, low=0, high=1),
    "SAVE_EVERY": Rule(float, above=0),
    "RESUME": Rule(str, choices=("auto", "never")),
    "COMPILE": Rule(str, choices=("auto", "yes", "no")),
    "PRECISION": Rule(str, choices=("auto", "float32", "bfloat16")),
    "SAMPLE_EVERY": Rule(int, low=0),
    "NUM_SAMPLES": Rule(int, low=1, high=10_000_000),
    "NUM_IMAGES": Rule(int, low=1),
    "FEATURES": Rule(str, choices=("auto", "classes", "self")),
    "CLASSIFIER_EPOCHS": Rule(int, low=1, words=("auto",)),
    "NUM_COMPLETIONS": Rule(int, low=1),
    "MASK": Rule(str, pattern=".+"),
    "WINDOW": Rule(int, low=1),
    "THRESHOLD": Rule(float, low=0, high=1),
    "TEMPERATURE": Rule(float, low=0),
    "TEMPERATURES": Rule(str, pattern=r"\d+(\.\d+)?( \d+(\.\d+)?)*"),
    "TOP_K": Rule(int, low=0),
    "TOP_P": Rule(float, above=0, high=1, words=("auto",)),
    "GUIDANCE": Rule(float, low=0, high=100, words=("auto",)),
    "STEPS": Rule(int, low=0),
    "STEP_COUNTS": Rule(str, pattern=r"\d{1,9}( \d{1,9})*"),
    "GUIDANCES": Rule(str, pattern=r"\d{1,2}(\.\d+)?( \d{1,2}(\.\d+)?)*"),
    "LATENT_CHANNEL": Rule(int, low=0),
    "CLASS_LABEL": Rule(str, pattern=".+"),
    "REPEATS": Rule(int, low=1),
    "GRIDS": Rule(str, pattern=r"\d+( \d+)*"),
    "BATCHES": Rule(str, pattern=r"\d+( \d+)*"),
    "PER_CODE_GRIDS": Rule(str, pattern=r"\d+( \d+)*"),
    "PER_CODE_BATCH": Rule(int, low=1),
    "PLAIN_CODES": Rule(int, low=1),
    "SOURCE": Rule(str, choices=("uniform", "gaussian")),
    # not constants, but sizes that a checkpoint states
    "HEIGHT": Rule(int, low=1, high=16384),
    "WIDTH": Rule(int, low=1, high=16384),
    "NUM_CLASSES": Rule(int, low=0, high=1_000_000),
    "COARSE_CODES": Rule(int, low=0, high=32768),
}


def flag(name: str) -> str:
    """The flag of a constant: NUM_CODES is --num-codes."""
    return "--" + name.lower().replace("_", "-")


class Constant(NamedTuple):
    """A constant as a script's source has it."""

    source: str  # the expression that it is set to
    remark: str  # beside it, the text of --help


def constants(path: Path) -> dict[str, Constant]:
    """The constants that a script assigns at its top level, by name, with those of the files from which it imports *:
    names in capitals that have a rule or a remark.
    """
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    remarks = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found, imported = {}, {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            imported |= constants(ROOT / f"{node.module.replace('.', '/')}.py")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper() \
                and isinstance(node.value, (ast.Constant, ast.UnaryOp)):
            name, remark = node.targets[0].id, remarks.get(node.end_lineno, "")
            if name in RULES or remark:
                found[name] = Constant(ast.unparse(node.value), remark)
    return found | imported


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists every flag)\n")


def parse(script: dict[str, Any], argv: list[str] | None = None) -> argparse.Namespace:
    """The constants of a script, whose globals() these are, each overridden by its flag in argv, under their own names
    in capitals. A constant that the globals lack has the value in the source.

    Exits with status 2 and one line on a wrong flag or a constant that its rule does not allow.
    """
    parser = _Parser(prog=Path(sys.argv[0]).name, description=script["__doc__"], allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    found = constants(Path(script["__file__"]))
    defaults = {name: script[name] if name in script else ast.literal_eval(found[name].source) for name in found}
    for name, value in defaults.items():
        default = "from the checkpoint" if value is None else repr(value)
        text = f"{found[name].remark} [{default}]".replace("%", "%%")
        if isinstance(value, bool):
            parser.add_argument(flag(name), dest=name, default=value, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag(name), dest=name, default=value, metavar="X", help=text)
    args = parser.parse_args(argv)
    for name, default in defaults.items():
        value = getattr(args, name)
        rule = RULES.get(name) or Rule(type(default))
        if default not in rule.words:  # a word only where the script itself knows it
            rule = rule._replace(words=())
        if value is None and default is None:
            continue
        try:
            setattr(args, name, rule.parse(value))
        except ValueError as error:
            parser.error(f"{name} ({flag(name)}) {error}")
    return args


def run(main: Callable[[argparse.Namespace], None], script: dict[str, Any]) -> None:
    """Call main with the script's flags; what the user can put right becomes one line and exit status 1, and a
    SIGINT or SIGTERM one line and 130 or 143.
    """
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a path may hold what the terminal cannot show
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    problem, status, args = "", 0, None
    try:
        args = parse(script)
        main(args)
        sys.stdout.flush()
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
    try:
        sys.stdout.flush()
    except OSError:  # stdout is closed: the interpreter must not flush it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if status:
        print(f"{name}: {' '.join(problem.split())}", file=sys.stderr)
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
