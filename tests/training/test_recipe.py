"""Schedules against closed forms; settings out of range in one line."""

import math

import pytest

from scalesearch.config import conf_folder, from_mapping, read_yaml
from scalesearch.errors import ConfigError
from scalesearch.training.recipe import Recipe, ema_at, lr_at, peak_rate


def test_learning_rate_against_the_closed_form():
    recipe = Recipe(epochs=10, warmup=2, learning_rate=0.8, batch=64, rate_batch=256)
    steps = 150
    for step in range(steps):
        if step < 30:
            expected = 0.2 * (step + 1) / 30
        else:
            expected = 0.2 * math.cos(math.pi / 2 * (step - 30) / 120) ** 2  # half-angle form of the cosine
        assert lr_at(recipe, step, steps) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_scales_with_the_batch_or_not():
    assert peak_rate(Recipe(learning_rate=0.1, batch=512, rate_batch=256)) == pytest.approx(0.2)
    assert peak_rate(Recipe(learning_rate=0.1, batch=512, rate_batch=0)) == 0.1


def test_short_trainings_and_long_warm_ups():
    assert lr_at(Recipe(epochs=1, warmup=0, rate_batch=0, learning_rate=1.0), 0, 1) == 1.0
    all_warmup = Recipe(epochs=2, warmup=5, rate_batch=0, learning_rate=1.0)
    assert [lr_at(all_warmup, step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_average_starts_short_and_ends_at_its_decay():
    recipe = Recipe(ema=0.99)
    assert ema_at(recipe, 0) == pytest.approx(0.1) and ema_at(recipe, 90) == pytest.approx(0.91)
    assert ema_at(recipe, 100_000) == 0.99


@pytest.mark.parametrize(("setting", "value"), [
    ("epochs", 0), ("batch", 1), ("batch", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("weight_decay", -1.0),
    ("ema", 1.0), ("label_smoothing", 1.0), ("crop", -0.1), ("bn_momentum", 0.0), ("warmup", -1.0), ("dropout", 1.0),
])
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"recipe.{setting}="):
        Recipe(**{setting: value})


def test_every_yaml_builds_and_explains_every_setting():
    paths = sorted((conf_folder() / "recipe").glob("*.yaml"))
    assert "quick" in [path.stem for path in paths]
    for path in paths:
        assert isinstance(from_mapping(Recipe, read_yaml(path)), Recipe)
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all("  # " in line for line in lines) and len(lines) == len(Recipe.__dataclass_fields__)
