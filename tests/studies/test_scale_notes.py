"""What `scale` says before a family is used: duplicates, floors, caps, odd coefficients, memory; a line each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scalesearch.architecture import load_architecture
from scalesearch.errors import ConfigError
from scalesearch.scaling import RULES
from scalesearch.screen import Screen
from scalesearch.studies import scale, scale_notes
from scalesearch.training.memory import training_memory


def scaled(**settings: object) -> dict:
    return scale.run(scale.ScaleSettings(**settings), Screen("json"))


def notes_of(free: float | None = None, **settings: object) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale_notes.parts, "free_memory", lambda: None if free is None else int(free))
        return scaled(**settings)["notes"]


def test_a_plain_family_needs_no_note() -> None:
    assert notes_of(phi="0..3") == []


def test_duplicates_after_rounding_are_named() -> None:
    notes = notes_of(phi="0.01,0.012,1,1.0,0", gamma=1.0, beta=1.0)
    assert "φ=0.01, 0.012, 1, 1: one network after rounding" in notes
    assert "φ=-0.001: rounding leaves the base as it is" in notes_of(phi="-0.001,1")


def test_members_that_are_all_the_base_say_why() -> None:
    notes = notes_of(phi="-0.001,-0.002")
    assert notes[0].startswith("φ=-0.001, -0.002: every member is the base itself; layers are rounded up")


def one_layer(tmp_path: Path) -> str:
    base = load_architecture("efficientnet_b0")
    flat = base.replace(stages=tuple(replace(stage, layers=1) for stage in base.stages))
    (tmp_path / "flat.yaml").write_text(flat.to_yaml(), encoding="utf-8")
    return str(tmp_path / "flat.yaml")


def test_one_layer_stages_never_shrink(tmp_path: Path) -> None:
    assert notes_of(phi="-1,-2") == ["φ=-1, -2: stages 1, 7 have one layer and keep it"]
    found = notes_of(phi="-1,-2", base=one_layer(tmp_path), beta=1.0, gamma=1.0)
    assert found[0].startswith("φ=-1, -2: every member is the base itself")
    assert found[1].endswith("has one layer, so its depth cannot shrink")
    assert notes_of(phi="-1", base=one_layer(tmp_path))[0].endswith("has one layer, so its depth cannot shrink")


def test_floors_and_caps_are_named() -> None:
    found = notes_of(phi="-40,7", largest=480)
    assert "φ=-40: every stage is down to 8 channels, the fewest" in found
    assert "φ=-40: resolution stays at 32 px, by which the strides divide it" in found
    assert "φ=7: resolution stays at 480 px, the largest of this rule" in found


def test_coefficients_below_1_are_named() -> None:
    assert notes_of(phi="1", alpha=0.9)[0] == "alpha=0.9 is below 1: layers become fewer as φ grows"
    assert [note[:9] for note in notes_of(phi="1", beta=0.8, gamma=0.9)][:2] == ["beta=0.8 ", "gamma=0.9"]
    with pytest.raises(ConfigError, match="solving φ needs coefficients of at least 1"):
        scaled(targets="1G", alpha=0.9)


def test_memory_that_is_not_there_is_one_line() -> None:
    """The micro-batches named fit and twice as many would not."""
    free = 8e9
    found = notes_of(free, phi="0,1,4,9", recipe={"batch": 128})
    assert len(found) == 1 and found[0].startswith("φ=0: a step of 128 images takes 11.4 GB, 8 GB are free; ") and len(found[0]) < 160
    b0 = load_architecture("efficientnet_b0")
    for phi, batch in ((0, 64), (1, 32), (4, 4)):
        assert f"{batch} (φ={phi:g})" in found[0].partition("on this CPU use recipe.micro_batch=")[2]
        network = RULES["compound"](b0, phi)
        fits, twice = (training_memory(network, n).peak <= 0.9 * free for n in (batch, 2 * batch))
        assert fits and not twice
    assert found[0].endswith("; not even 2 images fit for φ=9")
    assert notes_of(free, phi="9", recipe={"batch": 128})[0].endswith("8 GB are free; not even 2 images fit for φ=9")
    assert notes_of(1e15, phi="0,9") == []


def test_a_resolution_below_the_total_stride_is_refused() -> None:
    with pytest.raises(ConfigError, match="efficientnet_b0 has 16 px and divides them by 32: .* write resolution=32 or more"):
        scaled(resolution=16)
    assert scaled(resolution=32, phi="0")["members"][0]["resolution"] == 32 and notes_of(resolution=32, phi="0") == []


def test_pixels_fewer_than_the_strides_are_a_dimension_that_cannot_shrink() -> None:
    """A training takes them, as that of 28 px digits; only below half of the strides it does not."""
    found = notes_of(resolution=28, phi="-1", alpha=1.0)
    assert found == ["efficientnet_b0 has 28 px, fewer than the 32 that its strides divide by: one pixel is left at the end, and "
                     "resolution is nothing that can shrink"]
    assert scaled(resolution=28, phi="-1,2")["members"][1]["resolution"] == round(28 * 1.15**2)
