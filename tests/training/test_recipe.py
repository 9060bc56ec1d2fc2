"""Schedules against closed forms, the named recipes against their sources, settings out of range in one line."""

import math
from dataclasses import replace

import pytest

from scalesearch.config import conf_folder, from_mapping, read_yaml, to_mapping
from scalesearch.errors import ConfigError
from scalesearch.training.recipe import EpochPlan, Recipe, between, ema_at, ends, lr_at, peak_rate, plan_at
from scalesearch.training.regularisation import sized

RECIPES = sorted(path.stem for path in (conf_folder() / "recipe").glob("*.yaml"))


def named(name, **changes):
    return replace(from_mapping(Recipe, read_yaml(conf_folder() / "recipe" / f"{name}.yaml"), "recipe"), **changes)


def stages(recipe, resolution):
    """The plan of each of the recipe's stages: of its first epoch, which holds in its last."""
    edges = [math.ceil(stage * recipe.epochs / recipe.stages) for stage in range(recipe.stages + 1)]
    plans = [plan_at(recipe, edge, resolution) for edge in edges[:-1]]
    assert plans == [plan_at(recipe, edge - 1, resolution) for edge in edges[1:]]
    return plans


# ------------------------------------------------------------------ learning rate and averaged weights


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


def test_a_constant_learning_rate_is_constant_after_its_warm_up():
    recipe = Recipe(epochs=4, warmup=1, schedule="constant", learning_rate=0.3, rate_batch=0)
    assert [lr_at(recipe, step, 8) for step in range(8)] == pytest.approx([0.15] + [0.3] * 7)


def test_average_starts_short_and_ends_at_its_decay():
    recipe = Recipe(ema=0.99)
    assert ema_at(recipe, 0) == pytest.approx(0.1) and ema_at(recipe, 90) == pytest.approx(0.91)
    assert ema_at(recipe, 100_000) == 0.99


# ------------------------------------------------------------------ the recipes and their sources


@pytest.mark.parametrize("name", ["v1", "v2", "v2_paper"])
def test_the_papers_learning_rate(name):
    """arXiv 1905.11946v5, section 5.2; tensorflow/tpu: 0.016 per 256 images, x0.97 every 2.4 epochs of steps, from step 0."""
    recipe = named(name, batch=4096)
    assert peak_rate(recipe) == pytest.approx(0.256) and peak_rate(replace(recipe, batch=2048)) == pytest.approx(0.128)
    per_epoch = 1_281_167 // 4096
    steps = 350 * per_epoch
    rates = [lr_at(recipe, step, steps) for step in range(steps)]
    assert rates[:5 * per_epoch] == pytest.approx([0.256 * (step + 1) / (5 * per_epoch) for step in range(5 * per_epoch)])
    assert rates[5 * per_epoch] == pytest.approx(0.256 * 0.97**2)  # 4.8 epochs: two falls are behind it when the warm-up ends
    staircase = [0.256 * 0.97 ** (10 * step // (24 * per_epoch)) for step in range(steps)]  # 2.4 = 24/10, in whole numbers
    assert rates[5 * per_epoch:] == pytest.approx(staircase[5 * per_epoch:])
    assert rates[-1] == pytest.approx(0.256 * 0.97**145)  # 349.99 / 2.4 = 145.8


def test_v1_is_efficientnets_recipe():
    recipe = named("v1")
    assert (recipe.epochs, recipe.optimizer, recipe.momentum, recipe.weight_decay) == (350, "rmsprop_tf", 0.9, 1e-5)
    assert (recipe.decay_biases, recipe.label_smoothing, recipe.ema, recipe.stochastic_depth) == (True, 0.1, 0.9999, 0.2)
    assert (recipe.policy, recipe.area, recipe.shift, recipe.mixup, recipe.cutmix) == ("autoaugment", 0.08, 0.0, 0.0, 0.0)
    assert (recipe.bn_momentum, recipe.bn_eps, recipe.padding, recipe.initialiser) == (0.01, 1e-3, "same", "tensorflow")
    assert (recipe.sizing, recipe.dropout, recipe.batch, recipe.stages) == ("v1", 0.2, 256, 1)
    assert plan_at(recipe, 0, 224) == plan_at(recipe, 349, 224) == EpochPlan(224, 0.0, 0.0, 0.0, 0.2)


def test_v2_of_the_paper():
    """arXiv 2104.00298, table 6, spread by algorithm 1: M stages, value i = first + (last - first)·i/(M - 1)."""
    plans = stages(named("v2_paper"), 384)
    assert [plan.resolution for plan in plans] == [128, 185, 243, 300]
    assert [plan.magnitude for plan in plans] == pytest.approx([5, 5 + 10 / 3, 5 + 20 / 3, 15])
    assert [plan.dropout for plan in plans] == pytest.approx([0.1, 0.1 + 0.2 / 3, 0.1 + 0.4 / 3, 0.3])
    assert {(plan.mixup, plan.cutmix) for plan in plans} == {(0.0, 0.0)}


def test_v2_of_the_paper_medium_and_large():
    recipe = named("v2_paper", size=(128 / 480, 380 / 480))
    medium = stages(sized(recipe, 24_582_460_384), 480)
    assert [plan.resolution for plan in medium] == [128, 212, 296, 380]
    assert [plan.magnitude for plan in medium] == pytest.approx([5, 10, 15, 20])
    assert [plan.mixup for plan in medium] == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])
    assert [plan.dropout for plan in medium] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    large = stages(sized(recipe, 56_079_699_008), 480)
    assert [plan.magnitude for plan in large] == pytest.approx([5, 5 + 20 / 3, 5 + 40 / 3, 25])
    assert [plan.dropout for plan in large] == pytest.approx([0.1, 0.1 + 0.4 / 3, 0.1 + 0.8 / 3, 0.5])
    assert large[-1].mixup == pytest.approx(0.4) and large[-1].cutmix == 0.0


def test_v2_of_the_released_code():
    """google/automl, efficientnetv2: size i = int(128 + (train - 128)·(i + 1)/4), regularisers by linspace, dropout constant."""
    plans = stages(named("v2"), 384)
    assert [plan.resolution for plan in plans] == [int(128 + (300 - 128) * (i + 1) / 4) for i in range(4)] == [171, 214, 257, 300]
    assert [plan.magnitude for plan in plans] == pytest.approx([5, 5 + 5 / 3, 5 + 10 / 3, 10])
    assert {plan.dropout for plan in plans} == {0.2} and {(plan.mixup, plan.cutmix) for plan in plans} == {(0.0, 0.0)}


@pytest.mark.parametrize(("macs", "magnitude", "mixing", "dropout"), [(24_582_460_384, 15, 0.2, 0.3), (56_079_699_008, 20, 0.5, 0.4)])
def test_v2_of_the_released_code_medium_and_large(macs, magnitude, mixing, dropout):
    plans = stages(sized(named("v2", size=(128 / 480, 0.8)), macs), 480)
    assert [plan.resolution for plan in plans] == [192, 256, 320, 384]
    assert [plan.magnitude for plan in plans] == pytest.approx([5 + (magnitude - 5) * i / 3 for i in range(4)])
    assert [plan.mixup for plan in plans] == [plan.cutmix for plan in plans] == pytest.approx([mixing * i / 3 for i in range(4)])
    assert {plan.dropout for plan in plans} == {dropout}


def test_v2_presets_share_everything_but_the_growth():
    paper, released = named("v2_paper"), named("v2")
    different = {name for name, value in to_mapping(paper).items() if to_mapping(released)[name] != value}
    assert different == {"growth", "magnitude", "cutmix", "dropout", "bn_momentum"}
    assert (released.bn_momentum, paper.bn_momentum) == (0.1, 0.01)  # 0.9 in the code, 0.99 in the paper, in TensorFlow's terms
    assert not paper.decay_biases and paper.policy == "randaugment" and paper.policy_layers == 2


def test_v2_trains_a_quarter_of_the_epochs_at_each_size():
    recipe = named("v2_paper")
    sizes = [plan_at(recipe, epoch, 384).resolution for epoch in range(350)]
    assert sizes == sorted(sizes) and [sizes.count(size) for size in sorted(set(sizes))] == [88, 87, 88, 87]


def test_finetune_is_the_papers_transfer():
    """arXiv 2104.00298, section 5.3: batch 512, learning rate 0.001 by cosine, no weight decay, cutout."""
    recipe = named("finetune", batch=512)
    assert peak_rate(recipe) == pytest.approx(0.001) and recipe.schedule == "cosine" and recipe.weight_decay == 0.0
    assert recipe.erasing > 0 and recipe.optimizer == "rmsprop_tf"
    assert lr_at(recipe, 2999, 3000) < 1e-8


# ------------------------------------------------------------------ plans


def test_a_plain_number_stays_as_it_is():
    recipe = Recipe(epochs=10, size=0.75, dropout=0.3, mixup=0.2)
    assert {plan_at(recipe, epoch, 32) for epoch in range(10)} == {EpochPlan(24, 0.0, 0.2, 0.0, 0.3)}


def test_ends_and_between():
    assert ends(0.3) == (0.3, 0.3) and ends((0.1, 0.5)) == (0.1, 0.5)
    assert between((2.0, 6.0), 0.25) == 3.0 and between(2.0, 0.25) == 2.0


def test_sizes_of_the_released_code_are_exact_where_fractions_are_not():
    for last in range(130, 600):
        recipe = Recipe(epochs=4, stages=4, growth="released", size=(128 / 640, last / 640))
        assert [plan_at(recipe, i, 640).resolution for i in range(4)] == [128 + (last - 128) * (i + 1) // 4 for i in range(4)]


@pytest.mark.parametrize(("setting", "value"), [
    ("epochs", 0), ("batch", 1), ("batch", 0), ("micro_batch", 1), ("micro_batch", 0), ("learning_rate", 0.0),
    ("learning_rate", float("nan")), ("weight_decay", -1.0), ("ema", 1.0), ("label_smoothing", 1.0), ("shift", -0.1),
    ("bn_momentum", 0.0), ("warmup", -1.0), ("dropout", 1.0), ("dropout", (0.1, 0.3)), ("magnitude", (5.0, -1.0)), ("size", 0.0),
    ("size", (0.5, 1.5)), ("area", 0.0), ("area", 0.5), ("erasing", 1.1), ("stages", 21), ("sizing_base", 0.0), ("decay_epochs", 0.0),
])
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"recipe.{setting}=") as caught:
        Recipe(**{setting: value})
    assert "\n" not in str(caught.value)


def test_names_of_recipes():
    assert RECIPES == ["finetune", "quick", "standard", "v1", "v2", "v2_paper"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_yaml_builds_and_explains_every_setting(name):
    recipe = named(name)
    assert from_mapping(Recipe, to_mapping(recipe)) == recipe
    lines = [line for line in (conf_folder() / "recipe" / f"{name}.yaml").read_text().splitlines() if line and not line.startswith("#")]
    assert all(" # " in line for line in lines)
    assert [line.partition(":")[0] for line in lines] == list(Recipe.__dataclass_fields__), "in the order of the fields"


def test_the_first_recipes_are_what_they_were():
    assert named("quick") == Recipe(epochs=4, batch=64, learning_rate=0.3, warmup=1.0, ema=0.99, shift=0.0, bn_momentum=0.2)
    assert named("standard") == Recipe(epochs=60, learning_rate=0.05, warmup=3.0, ema=0.999, dropout=0.1, stochastic_depth=0.1)
