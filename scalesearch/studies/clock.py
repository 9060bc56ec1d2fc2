"""How long a run has taken, over all calls of its command: kept in its folder, so that a budget holds after a kill."""

from __future__ import annotations

import time
from pathlib import Path

from scalesearch.records import write_atomic

FILE = "clock.txt"
# Written no more often than this; a kill loses as much.
EVERY = 2.0


class Clock:
    """Seconds of the run so far; `tick` now and then keeps them. Begins to count when it is made."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._started = self._written = time.monotonic()
        try:
            self._before = float(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._before = 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def tick(self, always: bool = False) -> None:
        """Keep the time on the disk, if it was not kept just now."""
        if always or time.monotonic() - self._written >= EVERY:
            write_atomic(self._path, f"{self.seconds:.1f}\n")
            self._written = time.monotonic()
