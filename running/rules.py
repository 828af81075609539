"""What each constant may be: a constant means the same in every script, so its rule is written once."""
import math
import os
import re
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a constant may be: its type, and bounds, a list of choices or a pattern.

    words: texts that a number may be instead. join: what stands between the parts of a text that may be a tuple, too.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    choices: tuple = ()
    odd: bool = False
    pattern: str = ""
    words: tuple = ()
    join: str = ""

    def parse(self, value: Any) -> Any:
        """The value (a flag's text, or a constant as the script has it) checked; ValueError says what is wrong.

        What plainly means a right value is taken: a path, a number of numpy, 3.0 for 3, (64, 64) for "64x64".
        """
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif getattr(value, "ndim", None) == 0:
            value = value.item()
        elif isinstance(value, (tuple, list)) and self.join and value:
            value = self.join.join(map(str, value))
        elif isinstance(value, float) and self.kind is int and value.is_integer():
            value = int(value)
        if isinstance(value, str) and value in self.words:
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

# the groups of --help
GROUPS = {
    "data": {
        "DATASET": Rule(str, pattern=".+"),
        "AGAINST": Rule(str),
        "DATA_DIR": Rule(str, pattern=".+"),
        "LIMIT": Rule(int, low=0),
        "IMAGE_SIZE": Rule(str, pattern=r"auto|[1-9]\d{0,3}(x[1-9]\d{0,3})?", join="x"),
        "CHANNELS": Rule(int, choices=(1, 3), words=("auto",)),
        "CLASSES": Rule(str, choices=("auto", "folders", "none")),
        "CROP": Rule(str, pattern=r"(\d{1,6} \d{1,6} [1-9]\d{0,5})?", join=" "),
        "INVERT": Rule(bool),
        "NIFTI_AXIS": Rule(int, choices=(0, 1, 2)),
        "NIFTI_SCALE": Rule(str, choices=("slice", "volume", "folder")),
        "NIFTI_LOW": Rule(float, low=0, high=100),
        "NIFTI_HIGH": Rule(float, low=0, high=100),
        "VALUE_RANGE": Rule(str, pattern=rf"auto|{NUMBER} {NUMBER}", join=" "),
        "MAX_UNREADABLE": Rule(float, low=0, high=1),
    },
    "network": {
        "PRIOR": Rule(str, choices=("pixelcnn", "transformer", "masked")),
        "DOWNSAMPLE": Rule(int, choices=(2, 4, 8, 16), words=("auto",)),
        "ARCHITECTURE": Rule(str, choices=("space-to-depth", "paper"), words=("auto",)),
        "HIDDEN": Rule(int, low=2, high=8192, words=("auto",)),
        "RESIDUAL_BLOCKS": Rule(int, low=0, high=100),
        "RESIDUAL_HIDDEN": Rule(int, low=1, high=8192),
        "NUM_CODES": Rule(int, low=2, high=32768, words=("auto",)),
        "CODE_DIM": Rule(int, low=2, high=8192, words=("auto",)),
        "QUANTIZER": Rule(str, choices=("vq", "fsq", "bsq", "simvq")),
        "GRADIENT": Rule(str, choices=("straight", "rotation")),
        "CODEBOOK": Rule(str, choices=("ema", "gradient")),
        "LATENT_DIM": Rule(int, low=1, high=8192),
        "LAYERS": Rule(int, low=1, high=1000, words=("auto",)),
        "KERNEL_SIZE": Rule(int, low=3, high=31, odd=True),
        "HEADS": Rule(int, low=1, high=1024),
    },
    "training": {
        "EPOCHS": Rule(int, low=1, words=("auto",)),
        "BATCH_SIZE": Rule(int, low=1, words=("auto",)),
        "OPTIMIZER": Rule(str, choices=("muon", "adam"), words=("auto",)),
        "LEARNING_RATE": Rule(float, above=0, high=10),
        "WEIGHT_DECAY": Rule(float, low=0, high=10),
        "DROPOUT": Rule(float, low=0, high=0.9),
        "AUGMENT": Rule(str, choices=("none", "flip", "shift", "flip shift"), join=" "),
        "CLASS_DROPOUT": Rule(float, low=0, high=1),
        "EMA_DECAY": Rule(float, low=0, high=0.999999),
        "REVIVE_BELOW": Rule(float, low=0, high=0.5),
        "COMMITMENT_COST": Rule(float, low=0),
        "BETA": Rule(float, above=0),
        "PERCEPTUAL": Rule(float, low=0, high=100),
    },
    "images and samples": {
        "NUM_SAMPLES": Rule(int, low=1, high=10_000_000),
        "NUM_IMAGES": Rule(int, low=1),
        "NUM_COMPLETIONS": Rule(int, low=1),
        "CLASS_LABEL": Rule(str, pattern=".+"),
        "CODES": Rule(str),
        "STREAM": Rule(bool),
        "CLASS_GIVEN": Rule(bool),
        "MASK": Rule(str, pattern=".+"),
        "TEMPERATURE": Rule(float, low=0),
        "TOP_K": Rule(int, low=0),
        "TOP_P": Rule(float, above=0, high=1, words=("auto",)),
        "GUIDANCE": Rule(float, low=0, high=100, words=("auto",)),
        "STEPS": Rule(int, low=0),
        "SOURCE": Rule(str, choices=("uniform", "gaussian")),
        "LATENT_CHANNEL": Rule(int, low=0),
        "TURNS": Rule(bool),
        "WINDOW": Rule(int, low=1),
        "THRESHOLD": Rule(float, low=0, high=1),
    },
    "measures": {
        "FEATURES": Rule(str, choices=("auto", "imagenet", "classes")),
        "CLASSIFIER_EPOCHS": Rule(int, low=1, words=("auto",)),
        "INCEPTION": Rule(bool),
        "TEMPERATURES": Rule(str, pattern=r"\d+(\.\d+)?( \d+(\.\d+)?)*", join=" "),
        "TOP_PS": Rule(str, pattern=r"(0?\.\d+|1)( (0?\.\d+|1))*", join=" "),
        "STEP_COUNTS": Rule(str, pattern=r"\d{1,9}( \d{1,9})*", join=" "),
        "GUIDANCES": Rule(str, pattern=r"\d{1,2}(\.\d+)?( \d{1,2}(\.\d+)?)*", join=" "),
        "REPEATS": Rule(int, low=1),
        "GRIDS": Rule(str, pattern=r"\d+( \d+)*", join=" "),
        "BATCHES": Rule(str, pattern=r"\d+( \d+)*", join=" "),
        "PLAIN_CODES": Rule(int, low=1),
        "COMPILED": Rule(bool),
    },
    "run": {
        "RUNS": Rule(str, pattern=".+"),
        "TABLES": Rule(str, pattern=r"[\w -]*"),
        "EVALUATE": Rule(bool),
        "OUTPUT_DIR": Rule(str, pattern=".+"),
        "PRETRAINED": Rule(str),
        "SHARED_DIR": Rule(str, pattern=".+"),
        "SAMPLES_DIR": Rule(str),
        "HALF": Rule(bool),
        "SEED": Rule(int, low=0, high=2**63 - 1),
        "DEVICE": Rule(str, pattern=r"auto|cpu|mps|cuda(:\d+)?"),
        "PRECISION": Rule(str, choices=("auto", "float32", "bfloat16")),
        "COMPILE": Rule(str, choices=("auto", "yes", "no")),
        "SAVE_EVERY": Rule(float, above=0),
        "SAMPLE_EVERY": Rule(int, low=0),
        "RESUME": Rule(str, choices=("auto", "never")),
        "OVERWRITE": Rule(bool),
        "TENSORBOARD": Rule(bool),
    },
    "sizes that a checkpoint states, no constants": {
        "HEIGHT": Rule(int, low=1, high=16384),
        "WIDTH": Rule(int, low=1, high=16384),
        "NUM_CLASSES": Rule(int, low=0, high=1_000_000),
    },
}
RULES = {name: rule for rules in GROUPS.values() for name, rule in rules.items()}
