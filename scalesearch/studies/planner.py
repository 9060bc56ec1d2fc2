"""The budget planner: what fits into two hours, said before the start, kept to, and settled afterwards.

    times of training steps ─→ Prices (seconds a network) ─→ plan_bill ─→ Bill ─→ Ledger ─→ settle

A bill lists baseline, audit, prior, search and finalists with the wall-clock seconds that each takes
of so many workers. What is asked for besides the search is paid first; the rest buys trials. Where
that leaves too little for the search, finalists are given up before trials are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scalesearch.errors import BudgetError, ConfigError
from scalesearch.metrics import parse_duration
from scalesearch.promotion import Ladder
from scalesearch.records import Record

if TYPE_CHECKING:
    from scalesearch.screen import Screen

# Share of the budget that is kept for what nobody timed: starting, writing, the report.
RESERVE = 0.05
# Finalists may take this share of what the search and they have together; above it there are fewer.
MOST_FOR_FINALISTS = 0.5
# A finished evaluation changes what is expected of the next ones by no more than this factor.
MOST_CORRECTION = 10.0
# The scaled baseline and the random network, which are trained beside the finalists.
BESIDE = 2

ITEMS = ("baseline", "audit", "prior", "search", "finalists")
# Origins of records that are not the search's own.
_ITEM_OF = {"baseline": "baseline", "audit": "audit", "prior": "prior", "supernet": "prior", "finalist": "finalists",
            "scaled baseline": "finalists", "random network": "finalists"}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may take: seconds by the clock, or GPU-hours (seconds of all workers together), or trials; None: not said."""

    seconds: float | None = None
    device_seconds: float | None = None
    trials: int | None = None

    def clock(self, workers: int) -> float | None:
        """Seconds by the clock with so many workers."""
        return self.seconds if self.device_seconds is None else self.device_seconds / max(workers, 1)


def parse_budget(text: object) -> Budget:
    """`2h`, `90min`, `3 GPU-hours` or `100 trials`.

    >>> parse_budget("2h"), parse_budget("1.5 gpu-hours").device_seconds, parse_budget("100 trials").trials
    (Budget(seconds=7200.0, device_seconds=None, trials=None), 5400.0, 100)
    """
    words = str(text).strip().lower()
    for ends, kind in ((("gpu-hours", "gpu-hour", "gpu hours", "gpu hour", "gpu-h", "gpuh"), "gpu"), (("trials", "trial"), "trials")):
        for end in ends:
            if words.endswith(end):
                return _counted(words.removesuffix(end).strip(), kind, text)
    seconds = parse_duration(text, "budget")
    if not seconds > 0:
        raise BudgetError(f"budget={text}: a budget is above 0, such as budget=2h")
    return Budget(seconds=seconds)


def _counted(number: str, kind: str, text: object) -> Budget:
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"budget={text}: not a budget; write 2h, 90min, '3 GPU-hours' or '100 trials'") from None
    if not (math.isfinite(value) and value > 0) or (kind == "trials" and value != int(value)):
        raise BudgetError(f"budget={text}: a budget is above 0 and trials are whole, such as budget=2h or 'budget=100 trials'")
    return Budget(trials=int(value)) if kind == "trials" else Budget(device_seconds=3600.0 * value)


# ------------------------------------------------------------------ values


@dataclass(frozen=True, slots=True)
class StepTime:
    """What training one network takes: `role` is cheapest, median or dearest of the window.

    step_seconds         of one training step at the recipe's batch
    validation_seconds   of one look at all validation images
    rungs                seconds that each rung adds, the last one included
    final                seconds of one training by the finalists' schedule
    """

    role: str
    id: str
    macs: int
    step_seconds: float
    validation_seconds: float
    rungs: tuple[float, ...]
    final: float


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of one worker for a typical network: what each rung adds, and a finalist's training."""

    rungs: tuple[float, ...]
    final: float

    @property
    def whole(self) -> float:
        """Through all rungs."""
        return sum(self.rungs)


def typical(times: Sequence[StepTime]) -> Prices:
    """The mean over a window, from its cheapest, median and dearest: a quarter, a half, a quarter (others: evenly)."""
    roles = [t.role for t in times]
    weights = [0.25, 0.5, 0.25] if roles == ["cheapest", "median", "dearest"] else [1 / len(times)] * len(times)
    rungs = tuple(sum(w * t.rungs[k] for w, t in zip(weights, times, strict=True)) for k in range(len(times[0].rungs)))
    return Prices(rungs, sum(w * t.final for w, t in zip(weights, times, strict=True)))


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the bill: `trainings` of `each` seconds, `seconds` by the clock with the workers there are; `spent` afterwards."""

    name: str
    networks: int
    trainings: int
    each: float
    seconds: float
    spent: float | None = None


@dataclass(frozen=True)
class Bill:
    """What a search will do and what that takes; JSON-able by `to_mapping`.

    budget      seconds by the clock; None: no limit was given
    trials      networks that the search evaluates; `networks` of them at each rung
    finalists, final_seeds   trained again at the end; 0: none
    given_up    what the budget did not allow, in words
    spent       seconds by the clock in the end; None before
    """

    budget: float | None
    workers: int
    trials: int
    seeds: int
    shares: tuple[float, ...]
    reduction: float
    networks: tuple[int, ...]
    finalists: int
    final_seeds: int
    items: tuple[Item, ...]
    prices: Prices
    times: tuple[StepTime, ...] = ()
    given_up: str = ""
    spent: float | None = None

    @property
    def seconds(self) -> float:
        """Expected in all, without the reserve."""
        return sum(item.seconds for item in self.items)

    def item(self, name: str) -> Item | None:
        return next((item for item in self.items if item.name == name), None)


# ------------------------------------------------------------------ arithmetic


def plan_bill(prices: Prices, *, budget: float | None = None, trials: int | None = None, workers: int = 1, seeds: int = 1,
              shares: Sequence[float] = (1.0,), reduction: float = 3.0, finalists: int = 5, final_seeds: int = 3,
              before: Mapping[str, tuple[int, float]] | None = None, times: Sequence[StepTime] = (), most: int | None = None) -> Bill:
    """The bill of a search: as many trials as the budget allows, or the trials asked for.

    budget   seconds by the clock; None: only what `trials` takes
    before   "audit", "prior": (trainings, worker-seconds of each); paid before the search
    seeds    of each network in the search; final_seeds: of each finalist, and of the two networks beside them
    most     networks that there are in the window, if that is known

    BudgetError in one line, with the smallest budget that works, where not one candidate fits.
    """
    if budget is None and trials is None:
        raise ConfigError("a plan needs a budget or a number of trials; write budget=2h or trials=50")
    if len(prices.rungs) != len(shares):
        raise ConfigError(f"{len(prices.rungs)} prices for {len(shares)} rungs")
    workers = max(workers, 1)
    draft = Bill(budget, workers, 0, seeds, tuple(shares), reduction, (), finalists, final_seeds, (), prices, tuple(times))
    extras = tuple(_item(name, n, n, each, workers) for name, (n, each) in (before or {}).items())
    if budget is None:
        return _filled(draft, extras, trials or 1)
    usable = budget * (1 - RESERVE)
    for finals, final_runs in _fewer(finalists, final_seeds):
        option = replace(draft, finalists=finals, final_seeds=final_runs)
        fitting = trials if trials is not None else min(_most_trials(option, extras, usable), most or 10**9)
        bill = _filled(option, extras, fitting) if fitting else None
        if bill is not None and bill.seconds <= usable and (trials is not None or not finals or _balanced(bill)):
            return replace(bill, given_up=_given_up(finalists, final_seeds, bill))
    wanted = 1 if trials is None else trials
    least = _filled(replace(draft, finalists=0, final_seeds=0), extras, wanted).seconds / (1 - RESERVE)
    what = "one candidate" if wanted == 1 else f"trials={wanted}"
    raise BudgetError(f"budget={_short(budget, down=True)}: too little for {what}, which takes "
                      f"{_parts(_filled(replace(draft, finalists=0, final_seeds=0), extras, wanted))}; the smallest that works is "
                      f"budget={_short(least)}")


def _fewer(finalists: int, seeds: int) -> list[tuple[int, int]]:
    """From what was asked for down to no finalists."""
    three, two = min(finalists, 3), min(seeds, 2)
    options = [(finalists, seeds), (three, seeds), (three, two), (min(finalists, 1), two), (0, 0)]
    return list(dict.fromkeys((f, s) if f and s else (0, 0) for f, s in options))


def _filled(draft: Bill, extras: tuple[Item, ...], trials: int) -> Bill:
    """The bill of so many trials."""
    counts = tuple(Ladder(len(draft.shares), draft.reduction, max(1, min(draft.finalists, trials))).planned(trials))
    finals = (draft.finalists + BESIDE) * draft.final_seeds if draft.finalists else 0
    worker_seconds = draft.seeds * sum(n * each for n, each in zip(counts, draft.prices.rungs, strict=True))
    runs = draft.seeds * sum(counts)
    # The workers end at different times: the last one is half an evaluation behind on average.
    tail = (1 - 1 / draft.workers) * draft.prices.whole / 2
    items = [_item("baseline", 1, draft.seeds, draft.prices.whole, draft.workers), *extras,
             Item("search", trials, runs, worker_seconds / runs, worker_seconds / draft.workers + tail)]
    if finals:
        items.append(_item("finalists", draft.finalists + BESIDE, finals, draft.prices.final, draft.workers))
    return replace(draft, trials=trials, networks=counts, items=tuple(items))


def _item(name: str, networks: int, trainings: int, each: float, workers: int) -> Item:
    """So many equal trainings by so many workers: the clock counts whole rounds."""
    return Item(name, networks, trainings, each, math.ceil(trainings / workers) * each)


def _most_trials(draft: Bill, extras: tuple[Item, ...], usable: float) -> int:
    """The largest number of trials whose bill fits; 0: not one."""
    low, high = 0, 1
    while _filled(draft, extras, high).seconds <= usable and high < 10**7:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _filled(draft, extras, middle).seconds <= usable else (low, middle)
    return low


def _balanced(bill: Bill) -> bool:
    """Finalists take no more than their share, and there are more trials than finalists to choose from."""
    search, finals = (item.seconds if (item := bill.item(name)) else 0.0 for name in ("search", "finalists"))
    return finals <= MOST_FOR_FINALISTS * (search + finals) and bill.trials >= 2 * bill.finalists


def _given_up(finalists: int, seeds: int, bill: Bill) -> str:
    if (bill.finalists, bill.final_seeds) == (finalists, seeds) or not finalists:
        return ""
    left = f"{bill.finalists} finalists at {bill.final_seeds} seeds" if bill.finalists else "no finalists"
    return f"{left} instead of {finalists} at {seeds}: the search would have less than half of the budget"


def _parts(bill: Bill) -> str:
    return " and ".join(f"{_short(item.seconds)} for {'the ' if item.name != 'search' else ''}{item.name}" for item in bill.items)


def _short(seconds: float, down: bool = False) -> str:
    """A duration that `parse_duration` reads, with two digits, rounded up (or down): 1.5h, 12min, 0.4s."""
    unit, size = next((u, s) for u, s in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)) if seconds >= s or u == "ms")
    value = seconds / size
    step = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
    rounded = (math.floor(value / step + 1e-9) if down else math.ceil(value / step - 1e-9)) * step
    return f"{rounded:.3g}{unit}"


# ------------------------------------------------------------------ keeping to it


@dataclass
class Ledger:
    """Keeps a search to its bill: `may_start(rung)` until what is left is needed for the finalists.

    `before` are the seconds that earlier calls of the command took and this one has so far; None: what
    the records found took of each worker, added up. From then on the clock counts. What an evaluation takes is corrected by the ones that
    have finished: ten workers on one machine slow each other down, which nobody timed.
    """

    bill: Bill
    earlier: Iterable[Record] = ()
    clock: Callable[[], float] = time.monotonic
    before: float | None = None
    _planned: float = 0.0
    _taken: float = 0.0
    _survivors: int = 0
    _done: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = 0.0
        for record in self.earlier:
            self.add(record)
        self._before = sum(self._done.values()) / self.bill.workers if self.before is None else self.before
        self._started = self.clock()

    def add(self, record: Record) -> None:
        """An evaluation has finished; for `on_record`."""
        name = item_of(record)
        self._done[name] = self._done.get(name, 0.0) + occupied(record)
        if name == "search" and record.rung < len(self.bill.prices.rungs):
            self._planned += self.bill.prices.rungs[record.rung]
            self._taken += occupied(record)
            self._survivors += record.rung == len(self.bill.prices.rungs) - 1

    @property
    def correction(self) -> float:
        """What the search's evaluations took, of what the bill expected."""
        if not self._planned:
            return 1.0
        return min(max(self._taken / self._planned, 1 / MOST_CORRECTION), MOST_CORRECTION)

    @property
    def spent(self) -> float:
        """Seconds by the clock, those of earlier calls included."""
        return self._before + self.clock() - self._started

    def may_start(self, rung: int = 0) -> bool:
        """Whether an evaluation of this rung can end in time for the finalists, and for those that must reach the last rung."""
        if self.bill.budget is None:
            return True
        each = sum(self.bill.prices.rungs[rung: rung + 1]) * self.bill.seeds
        if rung == 0:  # promotions of what is there come before what is new
            missing = max(0, max(1, self.bill.finalists) * self.bill.seeds - self._survivors)
            each += math.ceil(missing / self.bill.workers) * sum(self.bill.prices.rungs[1:])
        finals = self.bill.item("finalists")
        return self.spent + self.correction * (each + (finals.seconds if finals else 0.0)) <= self.bill.budget


def item_of(record: Record) -> str:
    """The line of the bill that an evaluation belongs to."""
    return _ITEM_OF.get(record.origin, "search")


def occupied(record: Record) -> float:
    """Seconds for which a record kept its worker, starting and waiting for data included."""
    try:
        span = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()
    except ValueError:
        span = 0.0
    return max(record.seconds, span)


def settle(bill: Bill, records: Iterable[Record], seconds: float | None = None, beside: Mapping[str, float] | None = None) -> Bill:
    """The bill with what each line took, and in all `seconds` by the clock (None: the lines' sum).

    beside   seconds of lines that leave no records, such as {"prior": 340.0}
    """
    taken: dict[str, float] = dict(beside or {})
    for record in records:
        taken[item_of(record)] = taken.get(item_of(record), 0.0) + occupied(record) / bill.workers
    items = tuple(replace(item, spent=taken.get(item.name, 0.0)) for item in bill.items)
    return replace(bill, items=items, spent=sum(item.spent or 0.0 for item in items) if seconds is None else seconds)


# ------------------------------------------------------------------ in words


def rows_of(bill: Mapping[str, Any]) -> list[list[str]]:
    """Item, networks, trainings, seconds each, time, and time taken; of a Bill as `to_mapping` gives it."""
    from scalesearch.studies.parts import duration

    return [[item["name"], f"{item['networks']:,}", f"{item['trainings']:,}", duration(item["each"]), duration(item["seconds"]),
             *([duration(item["spent"])] if item["spent"] is not None else [])] for item in bill["items"]]


def show_bill(bill: Bill, screen: Screen) -> None:
    """The bill as a table, before the start and with what it took afterwards."""
    from scalesearch.config import to_mapping
    from scalesearch.studies.parts import duration

    for t in bill.times:
        screen.status(f"timed     {t.role:<8} {t.macs:,} multiply-adds: {1000 * t.step_seconds:.3g} ms a step, "
                      f"{duration(t.validation_seconds)} a validation, {duration(sum(t.rungs))} in all")
    for row in rows_of(to_mapping(bill)):
        taken = f", took {row[5]}" if len(row) > 5 else ""
        screen.status(f"bill      {row[0]:<10}{row[1]:>5} networks, {row[2]:>5} trainings of {row[3]}: {row[4]}{taken}")
    if bill.given_up:
        screen.status(f"bill      {bill.given_up}")
    screen.status(f"bill      {how_far_off(bill)}")


def how_far_off(bill: Bill) -> str:
    """What is expected of the budget; afterwards what it took, and how far off the plan was."""
    from scalesearch.studies.parts import duration

    expected = f"{duration(bill.seconds)} expected" + ("" if bill.budget is None else f" of a budget of {duration(bill.budget)}")
    if bill.spent is None:
        return f"{expected}, {bill.workers} at a time"
    off = f" ({round(100 * (bill.spent / bill.seconds - 1)):+d} %)" if bill.seconds else ""
    over = "" if bill.budget is None or bill.spent <= bill.budget else f", {duration(bill.spent - bill.budget)} over the budget"
    return f"{expected}, {duration(bill.spent)} taken{off}{over}"
