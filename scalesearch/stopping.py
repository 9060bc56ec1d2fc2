"""Being asked to stop (SIGTERM, as batch systems and `kill` send it): write a checkpoint, then end with exit code 143.

A loop that can stop cleanly says so by `with listening():` and looks at `requested()` between steps.
While nobody listens, the signal ends the process at once, through its `finally` blocks.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports for a process that SIGTERM ended: 143."""

_asked = threading.Event()
_listeners = 0


class Terminated(SystemExit):
    """The process was asked to stop, and what it worked on is on disk."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


def handle_sigterm() -> None:
    """From now on SIGTERM means the above; only a main thread can say so, elsewhere nothing changes."""
    if threading.current_thread() is threading.main_thread():
        _asked.clear()
        signal.signal(signal.SIGTERM, _on_signal)


def requested() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


@contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGTERM only sets `requested()`."""
    global _listeners
    _listeners += 1
    try:
        yield
    finally:
        _listeners -= 1


def _on_signal(number: int, frame: FrameType | None) -> None:
    _asked.set()
    if not _listeners:
        raise Terminated()
