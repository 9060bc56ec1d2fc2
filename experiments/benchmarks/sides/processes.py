"""Processes that stay and call functions for us, so that neither their start nor imports are timed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import wait
from typing import Any

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Job = tuple[Callable[..., Any], Mapping[str, Any]]
"""A function of a module and its arguments by name."""


class Worker:
    """A process that takes one job at a time; it ends with the block of `workers` that started it."""

    def __init__(self, threads: int | None) -> None:
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        with _thread_settings(threads):
            self.process = context.Process(target=_serve, args=(other, threads))
            self.process.start()
        other.close()

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


@contextmanager
def workers(count: int, threads: int | None) -> Iterator[list[Worker]]:
    """Processes with so many threads each; None: as many as torch takes by itself."""
    started: list[Worker] = []
    try:
        for _ in range(count):
            started.append(Worker(threads))
        yield started
    finally:
        for worker in started:
            worker.close()


def together(side: Sequence[Worker], jobs: Sequence[Job]) -> tuple[float, list[Any]]:
    """Seconds until all jobs are done, and their results in order; a worker that is free takes the next job."""
    waiting, results = list(enumerate(jobs)), [None] * len(jobs)
    running: dict[Any, int] = {}
    free, started = [worker.connection for worker in side], time.perf_counter()
    while waiting or running:
        while waiting and free:
            place, job = waiting.pop(0)
            connection = free.pop(0)
            connection.send(job)
            running[connection] = place
        for connection in wait(list(running)):
            place = running.pop(connection)
            try:
                good, results[place] = connection.recv()
            except (EOFError, OSError):
                raise RuntimeError(f"{jobs[place][0].__name__}: its process ended, out of memory perhaps") from None
            if not good:
                raise RuntimeError(results[place])
            free.append(connection)
    return time.perf_counter() - started, results


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _serve(connection: Any, threads: int | None) -> None:
    import torch

    # A started process hands on how it was started; DataLoaders here shall start their workers the platform's way.
    set_start_method(None, force=True)
    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        try:
            function, job = connection.recv()
        except (EOFError, OSError):  # nobody wants anything any more
            return
        try:
            reply = (True, function(**job))
        except Exception as error:
            traceback.print_exc()
            reply = (False, f"{function.__module__}.{function.__name__}: {first_line(error)}")
        try:
            connection.send(reply)
        except OSError:
            return


@contextmanager
def _thread_settings(threads: int | None) -> Iterator[None]:
    """The environment of a process that starts inside: no setting around may hold the plain side below torch's own count."""
    before = {name: os.environ.pop(name, None) for name in THREAD_SETTINGS}
    if threads is not None:
        os.environ.update({name: str(threads) for name in THREAD_SETTINGS})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
