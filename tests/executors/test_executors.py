"""One contract for every row of EXECUTORS; what killed workers and evaluators that do not travel come to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scalesearch.architecture import Architecture
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import Evaluator
from scalesearch.executors import EXECUTORS, Executor, Finished, Job, cause_of, load_executor, run_job
from scalesearch.executors.inline import InlineExecutor
from scalesearch.executors.local import LocalExecutor
from scalesearch.records import Evaluation, Failure

sys.path.insert(0, str(Path(__file__).parents[1]))  # worker processes inherit it
from toys import ToyEvaluator, ToySpace, Unsendable, calls, processes, truth

TESTS = Path(__file__).parents[1]
VALUES = {"channels": 24, "kernel": 5, "expansion": 6}
NETWORKS = [ToySpace().decode({"layers": layers, **VALUES}) for layers in (1, 2, 3, 4)]


def jobs(networks: Sequence[Architecture] = NETWORKS, folder: Path | None = None) -> list[Job]:
    return [Job(number, network, {}, seed=7, folder=folder) for number, network in enumerate(networks)]


def finish(executor: Executor, evaluator: Evaluator, todo: list[Job]) -> list[Finished]:
    """Run all jobs, as many at a time as there is room for."""
    executor.start(evaluator)
    todo, done, total = list(todo), [], len(todo)
    try:
        while len(done) < total:
            while todo and executor.idle:
                executor.submit(todo.pop(0))
            done += executor.wait()
    finally:
        executor.close()
    return sorted(done, key=lambda finished: finished.job.number)


@pytest.fixture(params=EXECUTORS.names())
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    executor: Executor = EXECUTORS.build(request.param, workers=2)
    yield executor
    executor.close()


def test_every_job_comes_back_once_with_its_result(executor: Executor, tmp_path: Path) -> None:
    evaluator = ToyEvaluator(tmp_path / "log", details={"note": "kept"})
    done = finish(executor, evaluator, jobs())
    assert [finished.job for finished in done] == jobs()
    assert [f.result.accuracy for f in done if isinstance(f.result, Evaluation)] == [truth(n) + 0.007 for n in NETWORKS]
    assert all(isinstance(f.result, Evaluation) and f.result.details == {"note": "kept"} and f.worker for f in done)
    assert set(calls(tmp_path / "log").values()) == {1}
    assert executor.wait(timeout=0) == []


def test_an_exception_is_a_failure_in_one_line_with_its_traceback_in_the_folder(executor: Executor, tmp_path: Path) -> None:
    evaluator = ToyEvaluator(tmp_path / "log", fail=(NETWORKS[1].id,))
    good, bad = finish(executor, evaluator, jobs(NETWORKS[:2], tmp_path / "candidate"))
    assert isinstance(good.result, Evaluation)
    assert isinstance(bad.result, Failure) and bad.result.cause == "RuntimeError: toy is told to fail"
    assert "in two lines" in (tmp_path / "candidate" / "failure.txt").read_text()


def test_it_can_be_started_again(executor: Executor, tmp_path: Path) -> None:
    for _ in range(2):
        assert len(finish(executor, ToyEvaluator(tmp_path / "log"), jobs(NETWORKS[:1]))) == 1


def test_workers_are_other_processes_with_one_thread(tmp_path: Path) -> None:
    evaluator = ToyEvaluator(tmp_path / "log", delay=0.2)
    threads = os.environ.get("OMP_NUM_THREADS")
    finish(LocalExecutor(workers=2), evaluator, jobs())
    assert len(processes(tmp_path / "log")) == 2 and os.getpid() not in processes(tmp_path / "log")
    assert os.environ.get("OMP_NUM_THREADS") == threads, "the driver's own environment is as it was"
    assert not any(alive(pid) for pid in processes(tmp_path / "log"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_killed_worker_takes_only_its_own_job_and_that_is_tried_again(tmp_path: Path) -> None:
    evaluator = ToyEvaluator(tmp_path / "log", delay=0.1, kill=(NETWORKS[1].id,), once=True)
    done = finish(LocalExecutor(workers=2), evaluator, jobs())
    assert all(isinstance(finished.result, Evaluation) for finished in done)
    assert [calls(tmp_path / "log")[(n.id, 7)] for n in NETWORKS] == [1, 2, 1, 1]


def test_a_job_that_kills_its_worker_twice_is_a_failure(tmp_path: Path) -> None:
    done = finish(LocalExecutor(workers=1), ToyEvaluator(tmp_path / "log", kill=(NETWORKS[0].id,)), jobs(NETWORKS[:2]))
    assert isinstance(done[0].result, Failure) and "worker died twice (signal 9, SIGKILL)" in done[0].result.cause
    assert isinstance(done[1].result, Evaluation)
    assert calls(tmp_path / "log")[(NETWORKS[0].id, 7)] == 2


def test_a_worker_that_dies_while_idle_is_replaced(tmp_path: Path) -> None:
    executor = LocalExecutor(workers=1)
    executor.start(ToyEvaluator(tmp_path / "log"))
    try:
        executor.submit(jobs()[0])
        assert len(executor.wait()) == 1
        os.kill(processes(tmp_path / "log").pop(), signal.SIGKILL)
        time.sleep(0.1)
        executor.submit(jobs()[1])
        assert isinstance(executor.wait()[0].result, Evaluation)
    finally:
        executor.close()


def test_closing_stops_what_is_running(tmp_path: Path) -> None:
    executor = LocalExecutor(workers=1)
    executor.start(ToyEvaluator(tmp_path / "log", delay=60))
    executor.submit(jobs()[0])
    while not calls(tmp_path / "log"):
        executor.wait(timeout=0.05)
    started = time.monotonic()
    executor.close()
    assert time.monotonic() - started < 5 and not any(alive(pid) for pid in processes(tmp_path / "log"))


class Unpicklable(ToyEvaluator):
    def __getstate__(self) -> Any:
        raise TypeError("cannot pickle this")


class OddResult(ToyEvaluator):
    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None) -> Any:
        return 0.5


def test_evaluators_that_do_not_travel_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError, match=r"toy cannot be sent to worker processes \(TypeError: cannot pickle this\).*workers=0"):
        LocalExecutor().start(Unpicklable(tmp_path / "log"))
    result = run_job(OddResult(tmp_path / "log"), jobs()[0])
    assert isinstance(result, Failure) and result.cause == "toy: evaluate returned float, not an Evaluation"


def test_results_that_do_not_travel_are_failures(tmp_path: Path) -> None:
    [done] = finish(LocalExecutor(), Unsendable(tmp_path / "log"), jobs(NETWORKS[:1]))
    assert isinstance(done.result, Failure) and done.result.cause.startswith("the result cannot be sent back")


def test_the_executor_follows_workers_and_evaluator() -> None:
    assert isinstance(load_executor(None, 2, inline=True), InlineExecutor)
    assert isinstance(load_executor({"name": "local"}, 0, inline=False), InlineExecutor)
    assert load_executor({"name": "local", "threads": 2}, 3, inline=False).idle == 3
    mine = InlineExecutor()
    assert load_executor(mine, 2, inline=False) is mine
    with pytest.raises(ConfigError, match="workers=-1"):
        load_executor(None, -1, inline=False)


def test_causes_are_short_and_memory_is_called_memory() -> None:
    assert cause_of(ValueError("\n\nfirst\nsecond")) == "ValueError: first"
    assert cause_of(KeyError()) == "KeyError"
    assert cause_of(MemoryError()) == "out of memory"
    assert cause_of(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.")) == "out of memory: CUDA out of memory."
    assert len(cause_of(ValueError("x" * 1000))) == 300


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import toys
from scalesearch.evaluators import Evaluation
from scalesearch.executors import Job
from scalesearch.executors.local import LocalExecutor

class Mine(toys.ToyEvaluator):
    def evaluate(self, architecture, *, seed, folder=None):
        print("noise on stdout")
        return Evaluation(0.25)

def main():
    executor = LocalExecutor()
    executor.start(Mine(pathlib.Path("log")))
    executor.submit(Job(0, toys.ToySpace().baseline, {{}}, 0))
    print(executor.wait()[0].result)
    {close}

{call}
"""


def run_script(tmp_path: Path, call: str, close: str = "executor.close()") -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(TESTS), call=call, close=close))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(TESTS.parent)})


def test_an_evaluator_of_a_script_works_and_stdout_stays_clean(tmp_path: Path) -> None:
    result = run_script(tmp_path, "if __name__ == '__main__':\n    main()", close="pass  # forgotten: the exit closes it")
    assert result.returncode == 0 and result.stdout.startswith("Evaluation(accuracy=0.25") and "noise" not in result.stdout


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    result = run_script(tmp_path, "main()")
    assert "worker died at start" in result.stdout and "__main__" in result.stdout
