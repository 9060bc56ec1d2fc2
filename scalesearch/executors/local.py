"""Evaluations side by side in worker processes of this machine, one thread each.

A worker is a process and a pipe. It is started fresh (spawn), so that no thread pool or CUDA context
of the driver is copied into it, and evaluates what comes through the pipe: an evaluator now and then,
and jobs for it. Workers that were left open for the next search have their imports behind them. A
worker that is killed takes one job with it, and that job is tried once more on a new worker.
A worker ends with its driver, however the driver ends; asked to stop, it writes its checkpoint first.

Scripts that start workers are imported by them, and so need `if __name__ == "__main__":` around
what they do; classes defined in such a script can be evaluators. In a notebook or `python -c`, write
the evaluator to a module or use `workers=0`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from scalesearch import stopping
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import Evaluator
from scalesearch.executors import Finished, Job, cause_of, run_job
from scalesearch.records import Evaluation, Failure

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Seconds for a training that is asked to stop to end its step and write its checkpoint.
_GRACE = 15.0


class LocalExecutor:
    """`workers` processes of `threads` threads each.

    One thread per candidate is fastest on CPU: small networks scale badly over threads, and more
    threads than cores are a catastrophe.
    """

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        if workers < 1 or threads < 1:
            raise ConfigError(f"workers={workers} threads={threads}: both are at least 1")
        self._workers = [_Worker(f"local-{number}", threads) for number in range(1, workers + 1)]
        self._evaluator = b""

    @property
    def idle(self) -> int:
        return sum(worker.job is None for worker in self._workers)

    def start(self, evaluator: Evaluator) -> None:
        try:
            self._evaluator = pickle.dumps(evaluator)
        except Exception as error:
            raise EvaluatorError(f"evaluator {evaluator.name} cannot be sent to worker processes ({cause_of(error)}); "
                                 "define it at the top level of a module, or write workers=0") from None
        atexit.unregister(self.close)
        atexit.register(self.close)  # before multiprocessing's own exit, which would wait for the workers

    def submit(self, job: Job) -> None:
        worker = next(worker for worker in self._workers if worker.job is None)
        worker.submit(job, self._evaluator)

    def wait(self, timeout: float | None = None) -> list[Finished]:
        done: list[Finished] = []
        while not done and (busy := [worker for worker in self._workers if worker.job is not None]):
            ready = set(connection.wait([handle for worker in busy for handle in worker.handles], timeout))
            collected = [worker.collect(self._evaluator) for worker in busy if ready & set(worker.handles)]
            done = [finished for finished in collected if finished is not None]
            if timeout is not None:
                break
        return done

    def close(self) -> None:
        atexit.unregister(self.close)
        for worker in self._workers:  # all of them first, so that they write their checkpoints side by side
            worker.ask_to_stop()
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One process and the driver's end of its pipe; started by the first job."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.job: Job | None = None
        self._threads = threads
        self._process: BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._holds = b""  # the evaluator that it was sent
        self._loaded = False
        self._retried = False

    @property
    def handles(self) -> list[Any]:
        """What becomes readable when the worker has something to say, or is no more."""
        return [] if self._process is None or self._pipe is None else [self._pipe, self._process.sentinel]

    def submit(self, job: Job, evaluator: bytes) -> None:
        self.job, self._retried = job, False
        self._send(evaluator)

    def collect(self, evaluator: bytes) -> Finished | None:
        """The result of the job if there is one; a worker that died is replaced and tries it once more."""
        assert self.job is not None and self._pipe is not None
        message: Any
        try:
            message = self._pipe.recv() if self._pipe.poll() else _DIED
        except Exception:  # the pipe broke off in the middle of a result
            message = _DIED
        if message == _LOADED:
            self._loaded = True
            return None
        if message == _DIED and not self._retried:
            self.stop()
            self._retried = True
            self._send(evaluator)
            return None
        result: Evaluation | Failure = self._death() if message == _DIED else message
        finished = Finished(self.job, result, f"{self.name}:{self._process.pid if self._process else 0}")
        if message == _DIED:
            self.stop()
        self.job = None
        return finished

    def ask_to_stop(self) -> None:
        """A busy worker ends after its step, an idle one has nothing to end."""
        if self._process is not None and self.job is not None:
            self._process.terminate()

    def stop(self) -> None:
        """End the process; a training writes its checkpoint first."""
        self.ask_to_stop()
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is None or pipe is None:
            return
        pipe.close()  # an idle worker leaves when its pipe closes
        process.join(_GRACE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()

    def _send(self, evaluator: bytes) -> None:
        """Hand the job over, to a new process where there is none or the old one died while idle."""
        try:
            self._hand_over(self._pipe or self._start(), evaluator)
        except OSError:
            self.stop()
            with suppress(OSError):  # dead again before it took the job: `collect` finds that out
                self._hand_over(self._start(), evaluator)

    def _hand_over(self, pipe: Connection[Any, Any], evaluator: bytes) -> None:
        if self._holds != evaluator:
            self._loaded = False
            pipe.send(evaluator)
            self._holds = evaluator
        pipe.send(self.job)

    def _start(self) -> Connection[Any, Any]:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._threads), name=self.name)
        self._loaded, self._holds = False, b""
        with _inherited(self._threads):
            self._process.start()
        theirs.close()
        return self._pipe

    def _death(self) -> Failure:
        assert self._process is not None
        self._process.join(2)
        code = self._process.exitcode
        how = f"signal {-code}, {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if self._loaded:
            hint = "; killed by the system for lack of memory?" if code == -signal.SIGKILL else ""
            return Failure(f"worker died twice ({how}){hint}")
        return Failure(f"worker died at start ({how}); a script that starts workers needs `if __name__ == \"__main__\":`, "
                       "or write workers=0")


# Messages of a worker beside its results.
_LOADED = "loaded"
_DIED = "died"


def _work(pipe: Connection[Any, Any], threads: int) -> None:
    """A worker's life: evaluate job after job, by the evaluator that came last, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    stopping.handle_sigterm()
    os.dup2(2, 1)  # whatever an evaluator prints must not mix with the driver's results on stdout
    threading.Thread(target=_end_with_parent, daemon=True).start()
    evaluator: Evaluator | Failure = Failure("no evaluator yet")
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            if isinstance(message, bytes):
                evaluator = _load(message, threads)
                pipe.send(_LOADED)
            else:
                _reply(pipe, evaluator if isinstance(evaluator, Failure) else run_job(evaluator, message))


def _load(pickled: bytes, threads: int) -> Evaluator | Failure:
    """The evaluator; a Failure, which answers every job, where it cannot be loaded here."""
    try:
        evaluator: Evaluator = pickle.loads(pickled)
    except Exception as error:
        return Failure(f"the evaluator cannot be loaded in a worker process ({cause_of(error)}); "
                       "define it in a module that can be imported, or write workers=0")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    return evaluator


def _reply(pipe: Connection[Any, Any], result: Evaluation | Failure) -> None:
    try:
        message = pickle.dumps(result)
    except Exception as error:
        message = pickle.dumps(Failure(f"the result cannot be sent back ({cause_of(error)})"))
    pipe.send_bytes(message)


def _end_with_parent() -> None:
    """Wait for the driver to end, then end at once: a killed driver leaves no worker behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _inherited(threads: int) -> Iterator[None]:
    """What a new process inherits: its thread count, read when numpy and torch are imported, and deafness to Ctrl-C."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    # Handlers are the main thread's to set; elsewhere a worker is deaf only once it runs.
    main = threading.current_thread() is threading.main_thread()
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
