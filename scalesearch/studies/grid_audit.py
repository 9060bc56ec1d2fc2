"""Which way the proxy leans: networks that put their growth in different places, at the proxy and at a longer schedule.

They all cost the same, so what the longer schedule adds to one more than to another is a matter of where
the growth went. A proxy that adds least to wide networks has favoured them all along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalesearch.analysis import Interval
from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.errors import ConfigError
from scalesearch.rank_correlation import FAVOURED, FEWEST, line_slope
from scalesearch.records import Key, Record
from scalesearch.response_surface import Shares, coordinates
from scalesearch.spaces.compound import ScaledNetwork
from scalesearch.studies.audit import Audit, compare
from scalesearch.studies.audit_networks import Listed

DIMENSIONS = ("depth", "width", "resolution")
# Networks of an audit.
NETWORKS = 7
# A difference of shares below this is rounding's.
SAME = 0.05
# Distance of the coefficients among which the audit's networks are sought.
STEP = 0.025


@dataclass(frozen=True, slots=True)
class Lean:
    """What the longer schedule adds with a dimension.

    points     accuracy (a fraction) that a network gains from the longer schedule beyond the others, from none of the growth in
               this dimension to all of it; above 0 the proxy underrates the dimension
    interval   simultaneous over the three; None: too few networks
    favours    what the proxy favours, where the interval excludes 0
    """

    dimension: str
    points: float | None
    interval: Interval | None
    favours: str | None


def audited_networks(base: Architecture, candidates: Sequence[ScaledNetwork]) -> list[Listed]:
    """Of the candidates, which cost the same, the nearest to each corner of the triangle, then always the farthest from all taken.

    Of equally far ones the first is taken. ConfigError where fewer than 4 differ.
    """
    distinct = {network.architecture.id: network.architecture for network in reversed(candidates)}
    networks = list(reversed(distinct.values()))
    places = np.array([_place(base, network) for network in networks]).reshape(-1, 3)
    chosen: list[int] = []
    for corner in np.eye(3) if networks else ():
        nearest = int(np.argmin(np.linalg.norm(places - corner, axis=1)))
        chosen += [nearest] if nearest not in chosen else []
    while networks and len(chosen) < NETWORKS:
        distances = np.min(np.linalg.norm(places[:, None] - places[chosen], axis=2), axis=1)
        if distances.max() < SAME:
            break
        chosen.append(int(np.argmax(distances)))
    if len(chosen) < FEWEST:
        raise ConfigError(f"audit=true: {base.name} scales to only {len(chosen)} networks of one cost that differ in where their growth "
                          f"went; an audit compares at least {FEWEST}: take a larger base, phi or tolerance")
    return [Listed(_role(places[i]), networks[i].replace(name=_role(places[i]))) for i in chosen]


def _role(place: Any) -> str:
    """All in depth, or depth 60 %, width 40 %."""
    parts = [(name, share) for name, share in zip(DIMENSIONS, place, strict=True) if share > SAME]
    return f"all in {parts[0][0]}" if len(parts) == 1 else ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts)


def _place(base: Architecture, network: Architecture) -> tuple[float, float, float]:
    shares = coordinates(base, network).shares
    return (1 / 3, 1 / 3, 1 / 3) if shares is None else (shares.depth, shares.width, shares.resolution)


def summarise_audit(base: Architecture, listed: Sequence[Listed], evaluator: Any, long: Any, known: Mapping[Key, Record],
                    seeds: tuple[int, ...], confidence: float) -> dict[str, Any]:
    """The result's "audit": both accuracies of each network, rank agreement, and which way the proxy leans."""
    found = compare(listed, evaluator, long, known, seeds, confidence=confidence)
    leans = leanings(found, {item.architecture.id: coordinates(base, item.architecture).shares for item in listed}, confidence)
    return {"audit": to_mapping(found), "lean": [to_mapping(lean) for lean in leans], "confidence": confidence,
            "epochs": [side.recipe.epochs for side in (evaluator, long)]}


def leanings(audit: Audit, shares: Mapping[str, Shares | None], confidence: float = 0.95) -> tuple[Lean, ...]:
    """For each dimension the slope of what the longer schedule added over the dimension's share of the growth.

    One straight line a dimension with Student's interval over networks, the confidence divided among the three (Bonferroni).
    """
    rows = [(shares[row.id], row.long_mean - row.proxy_mean) for row in audit.networks
            if shares.get(row.id) is not None and row.long_mean is not None and row.proxy_mean is not None]
    if len(rows) < FEWEST:
        return tuple(Lean(name, None, None, None) for name in DIMENSIONS)
    gains = np.array([gain for _, gain in rows])
    return tuple(_lean(name, np.array([getattr(share, name) for share, _ in rows]), gains, confidence) for name in DIMENSIONS)


def _lean(name: str, share: Any, gains: Any, confidence: float) -> Lean:
    if np.ptp(share) < 0.25:  # rounding left the dimension no room
        return Lean(name, None, None, None)
    slope, interval = line_slope(share, gains, 1 - (1 - confidence) / len(DIMENSIONS))
    less, more = FAVOURED[name]
    favours = None if interval is None else less if interval.low > 0 else more if interval.high < 0 else None
    return Lean(name, slope, interval, favours)
