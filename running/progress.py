"""Progress: a bar on a terminal, elsewhere a plain line every half minute."""
import sys
import time
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between plain lines


class Bar(tqdm):
    """tqdm's bar, which leaves nothing behind; where stderr is no terminal, such as a log file or a notebook, lines."""

    def __init__(self, *args: Any, **options: Any):
        self.plain, self.shown = not sys.stderr.isatty(), time.monotonic()
        if self.plain:  # miniters: the clock is looked at in every step
            options |= {"mininterval": EVERY, "miniters": 1,
                        "bar_format": "{desc}: {percentage:.0f}%, {n_fmt} of {total_fmt} in {elapsed}, {remaining} left"
                                      "{postfix}"}
        super().__init__(*args, leave=False, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self.plain:
            return super().display(msg, pos)
        if time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            print(str(self), file=sys.stderr)
        return True

    def close(self) -> None:
        if self.plain:
            self.sp = None  # then tqdm has nothing to clear
        super().close()
