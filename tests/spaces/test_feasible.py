"""Networks in a window: counts against brute force, uniform draws, neighbours and empty windows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from scalesearch.architecture import Architecture, Block, blocks, load_architecture
from scalesearch.config import parse_count
from scalesearch.cost import block_cost, cost_of
from scalesearch.errors import BudgetError, SpaceError
from scalesearch.metrics import METRICS
from scalesearch.objective import Window
from scalesearch.spaces import Parameter, Space, chain, feasible, load_space
from scalesearch.spaces.feasible import FeasibleSet, feasible_set
from scalesearch.spaces.stages import StageSpace, stage_options

_KNOWN: dict[str, dict[str, int]] = {}


def all_costs(space: Space) -> dict[str, int]:
    """Brute force: network id → multiply-adds of every distinct network, identified by its blocks."""
    if space.name not in _KNOWN:
        _KNOWN[space.name] = _all_costs(space)
    return _KNOWN[space.name]


def _all_costs(space: Space) -> dict[str, int]:
    names = [parameter.name for parameter in space.parameters]
    found = {}
    for choice in itertools.product(*(parameter.choices for parameter in space.parameters)):
        network = space.decode(dict(zip(names, choice, strict=True)))
        found[blocks(network)] = (network.id, cost_of(network).macs)
    return dict(found.values())


@pytest.fixture(scope="module")
def separable() -> StageSpace:
    """Three stages of fixed width: 12·12·8 networks."""
    base = load_architecture("efficientnet_b0").replace(resolution=64)
    skeleton = base.replace(stages=base.stages[:3])
    options = [stage_options(partial(replace, stage), expansion=(1, 4), kernel=(3, 5), layers=layers)
               for stage, layers in zip(skeleton.stages, ((1, 2, 3), (1, 2, 3), (1, 2)), strict=True)]
    return StageSpace("separable", skeleton, options)


@pytest.fixture(scope="module")
def coupled() -> StageSpace:
    """Three stages whose widths couple them, and skips that often make no difference."""
    base = load_architecture("mobilenet_v2").replace(resolution=64)
    skeleton = base.replace(stages=base.stages[:3])
    options = [stage_options(partial(replace, stage), channels=channels, skip=("identity", "none"), layers=(1, 2),
                             expansion=(1, 6))
               for stage, channels in zip(skeleton.stages, ((16, 32), (16, 24), (24, 32)), strict=True)]
    return StageSpace("coupled", skeleton, options)


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the bounded way, with few enough buckets that rounding matters."""
    monkeypatch.setattr(chain, "MOST_SUMS", 0)
    monkeypatch.setattr(chain, "BUCKETS", 500)


@pytest.mark.parametrize(("low", "high", "count"), [(360_000_000, 400_000_000, 12_965_342_083),
                                                    (180_000_000, 200_000_000, 3_631_604_896)])
def test_mbconv_is_counted_exactly(low: int, high: int, count: int) -> None:
    members = feasible_set(load_space("mbconv"), Window(low, high))
    assert members.exact and members.count == members.lower == members.upper == count
    assert members.range == (51_594_768, 884_060_256)
    assert str(members) == f"{count:,} networks"


def test_everything_is_in_the_widest_window() -> None:
    for name in ("mbconv", "mnasnet"):
        space = load_space(name)
        assert feasible_set(space, Window(0, 2**62)).count == space.size  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["separable", "coupled"])
def test_counts_agree_with_brute_force(name: str, request: pytest.FixtureRequest) -> None:
    space = request.getfixturevalue(name)
    costs = np.array(sorted(all_costs(space).values()))
    assert len(costs) == space.size
    for low, high in windows(costs):
        members = feasible_set(space, Window(low, high))
        assert members.exact and members.count == ((costs >= low) & (costs <= high)).sum()
        assert members.range == (costs[0], costs[-1])


@pytest.mark.parametrize("name", ["separable", "coupled"])
def test_bounds_hold(name: str, request: pytest.FixtureRequest, rounded: None) -> None:
    space = request.getfixturevalue(name)
    costs = np.array(sorted(all_costs(space).values()))
    loose = 0
    for low, high in windows(costs):
        members = feasible_set(space, Window(low, high))
        assert members.lower is not None and members.upper is not None
        assert members.lower <= ((costs >= low) & (costs <= high)).sum() <= members.upper
        assert members.range == (costs[0], costs[-1])
        loose += not members.exact
    assert loose  # else this tested nothing


def windows(costs: np.ndarray) -> list[tuple[int, int]]:
    """Windows that are not empty: a single cost, halves, random ones."""
    rng = np.random.default_rng(3)
    ends = [np.sort(rng.choice(costs, 2)) for _ in range(40)]
    return [(int(costs[0]), int(costs[0])), (0, int(costs[len(costs) // 2])), (int(costs[-1]), 2**62), (0, 2**62),
            *((int(low), int(high)) for low, high in ends)]


@pytest.mark.parametrize("way", ["exact", "bounded"])
@pytest.mark.parametrize("name", ["separable", "coupled"])
def test_draws_are_uniform(name: str, way: str, request: pytest.FixtureRequest) -> None:
    """Pearson's chi-square over networks; at this seed it may exceed its mean by 4 standard deviations."""
    if way == "bounded":
        request.getfixturevalue("rounded")
    space = request.getfixturevalue(name)
    costs = all_costs(space)
    low, high = np.quantile(list(costs.values()), [0.3, 0.4]).astype(int).tolist()
    inside = {key for key, macs in costs.items() if low <= macs <= high}
    members = feasible_set(space, Window(low, high))
    assert members.exact == (way == "exact")
    draws = [space.decode(values).id for values in members.random_draws(np.random.default_rng(7), 10 * len(inside))]
    counts = Counter(draws)
    assert set(counts) <= inside
    statistic = sum((counts[key] - 10) ** 2 / 10 for key in inside)
    freedom = len(inside) - 1
    assert freedom > 50 and abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("name", ["mbconv", "mbconv_v2", "mnasnet"])
def test_draws_lie_in_the_window(name: str) -> None:
    space, window = load_space(name), Window(360_000_000, 400_000_000)
    members = feasible_set(space, window)
    draws = members.random_draws(np.random.default_rng(0), 50)
    assert all(cost_of(space.decode(values)).macs in window for values in draws)
    assert len({space.decode(values).id for values in draws}) == 50
    assert draws == members.random_draws(np.random.default_rng(0), 50)


def test_mnasnet_bounds_are_tight() -> None:
    members = feasible_set(load_space("mnasnet"), Window(360_000_000, 400_000_000))
    assert members.lower is not None and members.upper is not None
    assert members.count is None and 0.99 < members.lower / members.upper < 1
    assert " to " in str(members)


@pytest.mark.parametrize("name", ["mbconv", "mnasnet"])
def test_neighbours(name: str) -> None:
    space, window = load_space(name), Window(360_000_000, 400_000_000)
    members = feasible_set(space, window)
    values = members.draw(np.random.default_rng(5))
    around = members.neighbours(values)
    networks = [space.decode(candidate) for candidate in around]
    assert len({blocks(network) for network in networks} | {blocks(space.decode(values))}) == len(around) + 1
    assert all(cost_of(network).macs in window for network in networks)
    assert all(sum(candidate[key] != values[key] for key in values) == 1 for candidate in around)
    changed = [{**values, p.name: choice} for p in space.parameters for choice in p.choices]
    wanted = {blocks(space.decode(candidate)) for candidate in changed if cost_of(space.decode(candidate)).macs in window}
    assert {blocks(network) for network in networks} == wanted - {blocks(space.decode(values))}
    with pytest.raises(SpaceError):
        members.neighbours({**values, space.parameters[0].name: "x"})


@pytest.mark.parametrize(("window", "message"), [
    (Window(360, 400), "target_flops=400: no network of space mbconv costs [360, 400] multiply-adds; "
                       "it spans 51.6M to 884.1M; the nearest is target_flops=51.6M"),
    (Window(900_000_000, 1_000_000_000), "target_flops=1.0G: no network of space mbconv costs [900.0M, 1.0G] multiply-adds; "
                                         "it spans 51.6M to 884.1M; the nearest is target_flops=884.1M"),
    (Window(51_594_769, 51_594_818), "target_flops=51,594,818: no network of space mbconv costs [51,594,769, 51,594,818] "
                                     "multiply-adds; it spans 51.6M to 884.1M; the nearest is target_flops=51,594,768"),
])
def test_empty_windows_name_the_nearest_budget(window: Window, message: str) -> None:
    with pytest.raises(BudgetError) as error:
        feasible_set(load_space("mbconv"), window)
    assert str(error.value) == message


@pytest.mark.parametrize("target", [400, 10**12])
def test_the_nearest_budget_is_feasible(target: int) -> None:
    with pytest.raises(BudgetError) as error:
        feasible_set(load_space("mbconv"), Window(round(0.9 * target), target))
    nearest = parse_count(str(error.value).rpartition("=")[2])
    assert feasible_set(load_space("mbconv"), Window(round(0.9 * nearest), round(nearest))).count


@pytest.mark.parametrize("way", ["exact", "bounded"])
@pytest.mark.parametrize("name", ["separable", "coupled"])
def test_gaps_inside_the_range(name: str, way: str, request: pytest.FixtureRequest) -> None:
    if way == "bounded":
        request.getfixturevalue("rounded")
    space = request.getfixturevalue(name)
    costs = np.array(sorted(set(all_costs(space).values())))
    gaps = np.flatnonzero(np.diff(costs) > 20)
    for gap in gaps[:: max(1, len(gaps) // (6 if way == "exact" else 2))]:
        low, high = int(costs[gap]) + 1, int(costs[gap + 1]) - 10
        with pytest.raises(BudgetError, match="the nearest is target_flops=") as error:
            feasible_set(space, Window(low, high))
        budget = parse_count(str(error.value).rpartition("=")[2].replace(",", ""))
        assert ((costs >= round(low / high * budget)) & (costs <= budget)).any()
        if way == "exact":
            assert budget >= costs[gap]


class Sizes:
    """A space without stages, as a third party writes it."""

    name = "sizes"
    baseline = load_architecture("efficientnet_b0_small")

    def __init__(self, sizes: int, kernels: tuple[int, ...] = (3, 5), pick: Callable[[int], int] = lambda size: size) -> None:
        self.parameters = (Parameter("size", tuple(range(8, 8 + sizes))), Parameter("kernel", kernels))
        self._pick = pick

    def decode(self, values: Any) -> Architecture:
        if values["size"] % 7 == 0:
            raise SpaceError("sizes that divide by 7 are illegal here")
        first = replace(self.baseline.stages[0], kernel=values["kernel"])
        return self.baseline.replace(resolution=self._pick(values["size"]), stages=(first, *self.baseline.stages[1:]))

    def encode(self, architecture: Architecture) -> dict[str, Any]:
        return {"size": architecture.resolution, "kernel": architecture.stages[0].kernel}


def test_a_small_foreign_space_is_listed() -> None:
    space = Sizes(20, pick=lambda size: size // 2 * 2)
    costs = {space.decode({"size": size, "kernel": kernel}).id: cost_of(space.decode({"size": size, "kernel": kernel})).macs
             for size in range(8, 28) if size % 7 for kernel in (3, 5)}
    window = Window(min(costs.values()), int(np.median(list(costs.values()))))
    members = FeasibleSet(space, window)
    assert members.count == sum(macs in window for macs in costs.values())
    assert {space.decode(v).id for v in members.random_draws(np.random.default_rng(0), 200)} == {
        key for key, macs in costs.items() if macs in window}
    values = members.draw(np.random.default_rng(0))
    assert all(space.decode(v).id != space.decode(values).id for v in members.neighbours(values))
    with pytest.raises(BudgetError, match="no network of space sizes costs"):
        feasible_set(space, Window(1, 2))


def test_a_large_foreign_space_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "MOST_LISTED", 10)
    monkeypatch.setattr(feasible, "MOST_TRIES", 300)
    space = Sizes(40)
    window = Window(2_000_000, 20_000_000)
    members = feasible_set(space, window)
    assert (members.count, members.lower, members.upper, members.exact) == (None, None, None, False)
    assert members.range[0] < members.range[1] and str(members) == "an unknown number of networks"
    assert all(cost_of(space.decode(v)).macs in window for v in members.random_draws(np.random.default_rng(0), 20))
    with pytest.raises(BudgetError, match="no network of space sizes was found that costs"):
        feasible_set(space, Window(1, 2))


def test_compound_lists_itself() -> None:
    space = load_space("compound")
    base = cost_of(space.baseline).macs
    members = feasible_set(space, Window(round(1.9 * base), round(2.1 * base)))
    assert members.count == 20
    assert 1.9 <= cost_of(space.decode(members.draw(np.random.default_rng(0)))).macs / base <= 2.1


# --- other costs than multiply-adds ----------------------------------------------------------------

def nanoseconds(block: Block) -> int:
    """A device on which parameters and kernels count, and every network has something less than its blocks."""
    return 11 * block_cost(block).params + 977 * block.kernel - 12_345 * (block.op == "stem")


def largest_map(network: Architecture) -> int:
    return max(block.outputs * block.size_out**2 for block in blocks(network))


def priced_costs(space: Space, cost: Callable[[Architecture], int]) -> dict[str, int]:
    names = [parameter.name for parameter in space.parameters]
    found = {}
    for choice in itertools.product(*(parameter.choices for parameter in space.parameters)):
        network = space.decode(dict(zip(names, choice, strict=True)))
        found[blocks(network)] = (network.id, cost(network))
    return dict(found.values())


@pytest.mark.parametrize("way", ["exact", "bounded"])
@pytest.mark.parametrize("name", ["separable", "coupled"])
def test_a_price_is_counted_as_exactly(name: str, way: str, request: pytest.FixtureRequest) -> None:
    if way == "bounded":
        request.getfixturevalue("rounded")
    space = request.getfixturevalue(name)
    known = priced_costs(space, lambda network: sum(map(nanoseconds, blocks(network))))
    costs = np.array(sorted(known.values()))
    for low, high in [(int(costs[0]), int(costs[len(costs) // 3])), (int(costs[40]), int(costs[-40]))]:
        members = feasible_set(space, Window(low, high, "latency_ns"), nanoseconds)
        inside = ((costs >= low) & (costs <= high)).sum()
        assert members.lower is not None and members.upper is not None and members.lower <= inside <= members.upper
        assert members.exact == (way == "exact") and members.range == (costs[0], costs[-1])
        rows = members.random_draws(np.random.default_rng(1), 60)
        drawn = [known[space.decode(values).id] for values in rows]
        assert all(low <= cost <= high for cost in drawn) and members.costs(rows).tolist() == drawn
        assert [members.cost(values) for values in rows[:5]] == drawn[:5] == [members.cost(space.decode(v)) for v in rows[:5]]
        around = members.neighbours(rows[0])
        assert around and all(low <= known[space.decode(values).id] <= high for values in around)


def test_a_price_of_multiply_adds_gives_the_same_set() -> None:
    space, window = load_space("mbconv"), Window(360_000_000, 400_000_000)
    priced, plain = feasible_set(space, window, lambda block: block_cost(block).macs), feasible_set(space, window)
    assert (priced.count, priced.range) == (plain.count, plain.range)
    assert priced.random_draws(np.random.default_rng(0), 20) == plain.random_draws(np.random.default_rng(0), 20)


@pytest.mark.parametrize("listed", [True, False])
def test_a_cost_that_does_not_add_up(separable: StageSpace, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "MOST_TRIES", 4000)
    if not listed:
        monkeypatch.setattr(feasible, "MOST_LISTED", 0)
    known = priced_costs(separable, largest_map)
    low, high = np.quantile(list(known.values()), [0.2, 0.7]).astype(int).tolist()
    members = feasible_set(separable, Window(low, high, "memory_bytes"), amount=largest_map)
    inside = {key for key, cost in known.items() if low <= cost <= high}
    assert members.count == (len(inside) if listed else None)
    drawn = {separable.decode(values).id for values in members.random_draws(np.random.default_rng(0), 300)}
    assert drawn <= inside and len(drawn) > 150
    with pytest.raises(BudgetError, match=r"^target_memory=1e-06MB: no network of space separable .*takes \[1e-06MB, 1e-06MB\] of memory"):
        feasible_set(separable, Window(1, 1, "memory_bytes"), amount=largest_map)


@pytest.mark.parametrize(("window", "message"), [
    (Window(900_000, 1_000_000, "latency_ns"),
     "target_latency=1ms: no network of space mbconv has a predicted latency of [0.9ms, 1ms]; it spans 19.79ms to 94.62ms; "
     "the nearest is target_latency=19.8ms"),
    (Window(0, 1_000_000, "nanoseconds_per_image"),
     "target_throughput=1000/s: no network of space mbconv has a predicted throughput of [1000/s, any]; it spans 10.57/s to 50.53/s; "
     "the nearest is target_throughput=50.52/s"),
    (Window(90_000_000_000, 100_000_000_000, "step_ns"),
     "target_step=100000ms: no network of space mbconv has predicted training steps of [90000ms, 100000ms]; it spans 19.79ms to 94.62ms; "
     "the nearest is target_step=94.63ms"),
])
def test_empty_windows_speak_of_the_metric(window: Window, message: str) -> None:
    with pytest.raises(BudgetError) as error:
        feasible_set(load_space("mbconv"), window, nanoseconds)
    assert str(error.value) == message
    setting, _, nearest = str(error.value).rpartition(" ")[2].partition("=")
    metric = next(metric for metric in METRICS.values() if metric.setting == setting)
    low, high = metric.bounds(metric.parse(nearest), (0.9, 1.0))
    assert feasible_set(load_space("mbconv"), Window(low, high, metric.cost), nanoseconds).count
