"""Pages of audits and ladders that have not finished, in which nothing succeeded, or that say everything there is to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import scalesearch as ss
from scalesearch.config import to_mapping
from scalesearch.records import open_run
from scalesearch.report import write_report
from scalesearch.report.audit import audit_lines, audit_parts, places_of
from scalesearch.report.calibrate import calibration_lines
from scalesearch.studies import parts
from scalesearch.studies.audit import compare
from scalesearch.studies.audit_networks import Listed
from scalesearch.studies.calibrate import Rung, calibrate


class Side:
    """What `compare` asks of an evaluator."""

    rungs, note = (1.0,), "told"

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint


def told(accuracies: list[tuple[float | None, float | None]]) -> dict[str, Any]:
    """An audit of networks with these accuracies at both sides, B0 at rising widths."""
    class Known:
        def __init__(self, accuracy: float | None) -> None:
            self.accuracy, self.seconds = accuracy, 60.0

    networks = [ss.ScalingRule(1, 1 + 0.25 * i, 1)(ss.load_architecture("efficientnet_b0")) for i in range(len(accuracies))]
    known: Any = {(network.id, side, 0, 0): Known(value) for network, pair in zip(networks, accuracies, strict=True)
                  for side, value in zip(("short", "long"), pair, strict=True)}
    listed = [Listed("draw" if i else "baseline", network) for i, network in enumerate(networks)]
    result: dict[str, Any] = to_mapping(compare(listed, Side("short"), Side("long"), known, (0,)))
    return result


def page(folder: Path, command: str, result: dict[str, Any] | None) -> str:
    open_run(folder, command, {"proxy": "epochs", "widths": [0.5, 1.0]})
    if result is not None:
        parts.write_json(folder / "result.json", {"note": "trained on nothing", **result})
    return write_report(folder).read_text(encoding="utf-8")


def test_an_audit_says_verdict_direction_and_time(tmp_path: Path) -> None:
    audit = told([(0.1 * i, 0.5 - 0.05 * i) for i in range(8)])
    said = audit_lines(audit)
    assert said[0].startswith("The proxy is not fit to rank") and "τ = -1.00" in said[0]
    assert any(line.startswith("The proxy favours wide networks") for line in said)
    assert said[-1] == "The proxy took 8 min 0 s of training, the longer schedule 8 min 0 s."
    text = page(tmp_path / "run", "audit", {"audit": audit})
    assert "not fit to rank" in text and (tmp_path / "run/tables/audit.csv").read_text().count("\n") == 9
    assert (tmp_path / "run/tables/bias.csv").is_file() and "proxy_against_long" in text


def test_an_audit_in_which_everything_failed_is_told(tmp_path: Path) -> None:
    audit = told([(None, 0.5)] * 5)
    assert audit["tau"] is None and audit["verdict"] == "unknown" and audit["failures"] == 5
    assert "5 trainings failed" in " ".join(audit_lines(audit)) and audit_parts(audit).pictures == []
    assert "cannot be told" in page(tmp_path / "run", "audit", {"audit": audit})


def test_equal_accuracies_share_a_place() -> None:
    rows = told([(0.1, 0.5), (0.1, 0.6), (0.3, 0.7), (None, 0.2)])["networks"]
    assert sorted(places_of(rows, "proxy").values()) == [1, 2, 2] and len(places_of(rows, "long")) == 4


def test_a_proxy_that_has_learned_nothing_is_called_that() -> None:
    assert "The proxy gives 4 of 5 networks" in " ".join(audit_lines(told([(0.1, 0.2 + 0.1 * i) for i in range(4)] + [(0.3, 0.7)])))
    assert "tell those apart" not in " ".join(audit_lines(told([(0.1 * i, 0.2 + 0.1 * i) for i in range(5)])))


@pytest.mark.parametrize("command", ["audit", "calibrate"])
def test_a_run_that_has_not_finished_has_a_page(tmp_path: Path, command: str) -> None:
    assert "not finished" in page(tmp_path / "run", command, None)


def test_a_ladder_has_its_table_its_picture_and_the_setting(tmp_path: Path) -> None:
    rungs = [Rung(w, f"n{w}", round(1e6 * w * w), 10, tuple(0.6 * w**0.1 + 0.001 * s for s in range(3))) for w in (0.5, 0.7, 1.0, 1.4)]
    found = to_mapping(calibrate(rungs, (0, 1, 2)))
    text = page(tmp_path / "run", "calibrate", {"calibration": found})
    assert calibration_lines(found)[-1] in text and f"objective.exponent={found['exponent']:.3f}" in text
    rows = (tmp_path / "run/tables/ladder.csv").read_text().splitlines()
    assert rows[0].startswith("width,macs,seeds,accuracy,reward_paper,reward_here") and len(rows) == 5
    assert (tmp_path / "run/figures/ladder.png").is_file()
