"""The loop against a plain one, and what it promises: same seed same result, resumable, stoppable."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F

from scalesearch.architecture import load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.networks.build import build_model
from scalesearch.scaling import ScalingRule
from scalesearch.training.augment import draw_epoch
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import DataSettings, ImageSet, Split, load_data
from scalesearch.training.devices import torch_device
from scalesearch.training.evaluation import evaluate_on
from scalesearch.training.loop import EpochStats, TrainingDiverged, compiling_pays, mix_seed, train
from scalesearch.training.recipe import Recipe, ema_at, lr_at, plan_at

NETWORK = ScalingRule().scale(load_architecture("efficientnet_b0_small"), 0.2, 0.25, 10)
MACS = cost_of(NETWORK).macs
SMALL = Recipe(epochs=3, batch=32, learning_rate=0.2, warmup=1, shift=0.1, flip=True, bn_momentum=0.2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_data(DataSettings(limit=200, cache=tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def split(digits):
    return dataclasses.replace(digits.split(0, 2), mirror=True)


def tiny(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Dropout(dropout), nn.Linear(32, 10))


def run(model, split, recipe=SMALL, **options):
    return list(train(model, split, recipe, **{"resolution": 8, "macs": lambda side: 1000, "device": "cpu", **options}))


def plain_loop(model, split, recipe, seed):
    """What the loop computes, one image and one parameter at a time, in double precision and with torch's own parts."""
    model, averaged = model.double(), copy.deepcopy(model).double()
    images = split.data.images.astype(np.float64) / 255
    train_pixels = images[split.train].reshape(-1, 3)
    mean, deviation = train_pixels.mean(0), train_pixels.std(0)
    decayed = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1]
    others = [p for n, p in model.named_parameters() if not (n.endswith("weight") and p.ndim > 1)]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others}], lr=1.0,
                                momentum=recipe.momentum, nesterov=True)
    per_epoch = len(split.train) // recipe.batch
    losses, accuracies = [], []
    for epoch in range(recipe.epochs):
        draws = draw_epoch(len(split.train), plan_at(recipe, epoch, 8), recipe, split.mirror,
                           Generator().manual_seed(mix_seed(seed, epoch)))
        model.train()
        epoch_losses = []
        for step in range(per_epoch):
            batch, labels = [], []
            for place in range(step * recipe.batch, (step + 1) * recipe.batch):
                row = split.train[draws.order[place]]
                padded = np.pad(images[row], ((7, 7), (7, 7), (0, 0)), mode="reflect")
                top, left = 7 - int(draws.down[place]), 7 - int(draws.right[place])
                image = padded[top:top + 8, left:left + 8]
                image = image[:, ::-1] if draws.flip[place] else image
                batch.append(((image - mean) / deviation).transpose(2, 0, 1))
                labels.append(split.data.labels[row])
            logits = model(torch.tensor(np.stack(batch)))
            logs = F.log_softmax(logits, 1)
            smooth = recipe.label_smoothing
            target = torch.full_like(logs, smooth / 10)
            target[range(recipe.batch), labels] += 1 - smooth
            loss = -(target * logs).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            number = epoch * per_epoch + step
            for group in optimizer.param_groups:
                group["lr"] = lr_at(recipe, number, recipe.epochs * per_epoch)
            optimizer.step()
            decay = ema_at(recipe, number)
            with torch.no_grad():
                for name, value in averaged.state_dict().items():
                    now = model.state_dict()[name]
                    value.copy_(decay * value + (1 - decay) * now if value.is_floating_point() else now)
            epoch_losses.append(loss.item())
        averaged.eval()
        with torch.no_grad():
            held_out = torch.tensor(((images[split.validation] - mean) / deviation).transpose(0, 3, 1, 2))
            accuracies.append((averaged(held_out).argmax(1).numpy() == split.data.labels[split.validation]).mean())
        losses.append(np.mean(epoch_losses))
    return losses, accuracies


def test_the_same_losses_as_a_plain_loop(split):
    losses, accuracies = plain_loop(tiny(), split, SMALL, seed=3)
    history = run(tiny(), split, seed=3)
    assert [stats.train_loss for stats in history] == pytest.approx(losses, rel=1e-4)
    assert [stats.accuracy for stats in history] == pytest.approx(accuracies, abs=0.0101)  # one image may tip over


def test_a_network_learns_digits_far_above_chance(tmp_path):
    recipe = Recipe(epochs=3, batch=32, learning_rate=0.4, warmup=1, shift=0.0, bn_momentum=0.2)
    data = load_data(DataSettings(limit=700))
    model = build_model(NETWORK, bn_momentum=0.2, seed=0)
    history = run(model, data.split(0, 3), recipe, resolution=10, macs=lambda side: MACS)
    assert history[-1].accuracy > 0.6 and history[-1].loss < 1.5
    accuracy, _ = evaluate_on(model, data.test, data.split(0, 3), recipe, resolution=10, device="cpu")
    assert accuracy > 0.6


def test_the_counters(split):
    history = run(tiny(), split, macs=lambda side: 1234)
    assert [stats.epoch for stats in history] == [1, 2, 3]
    assert [stats.images for stats in history] == [96, 192, 288]  # 100 training images in batches of 32
    assert all(stats.training_macs == 3 * 1234 * stats.images for stats in history)
    assert all(a.seconds < b.seconds for a, b in zip(history, history[1:], strict=False))
    assert history[-1].learning_rate == lr_at(SMALL, 8, 9)


def without_seconds(history):
    return [dataclasses.replace(stats, seconds=0.0) for stats in history]


def test_a_seed_is_one_result_whatever_the_global_generators_do(split):
    recipe = dataclasses.replace(SMALL, dropout=0.3)
    torch.manual_seed(1)
    np.random.seed(1)
    first = run(tiny(dropout=0.3), split, recipe, seed=5)
    torch.rand(17)
    stream = train(tiny(dropout=0.3), split, recipe, resolution=8, macs=lambda side: 1000, seed=5, device="cpu")
    second = []
    for stats in stream:
        second.append(stats)
        torch.manual_seed(len(second))  # between epochs other code draws
    assert without_seconds(first) == without_seconds(second)
    assert without_seconds(first) != without_seconds(run(tiny(dropout=0.3), split, recipe, seed=6))


def test_the_global_generator_is_left_as_it_was(split):
    model = tiny(dropout=0.5)
    before = torch.get_rng_state()
    run(model, split)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_training_is_bit_identical(split, tmp_path, optimizer, stop):
    recipe = dataclasses.replace(SMALL, optimizer=optimizer, learning_rate=0.01, dropout=0.2)
    straight, broken, resumed = tiny(dropout=0.2), tiny(dropout=0.2), tiny(seed=9, dropout=0.2)
    whole = run(straight, split, recipe)
    stream = train(broken, split, recipe, resolution=8, macs=lambda side: 1000, device="cpu", checkpoint=Checkpoint(tmp_path / "c.pt"))
    for _ in range(stop):
        next(stream)
    stream.close()
    rest = run(resumed, split, recipe, checkpoint=Checkpoint(tmp_path / "c.pt"))
    assert without_seconds(rest) == without_seconds(whole)  # finished epochs are yielded again
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_finished_training_is_not_trained_again(split, tmp_path):
    first, second = tiny(), tiny(seed=1)
    history = run(first, split, checkpoint=Checkpoint(tmp_path / "c.pt"))
    changed = (tmp_path / "c.pt").stat().st_mtime_ns
    assert run(second, split, checkpoint=Checkpoint(tmp_path / "c.pt")) == history
    assert (tmp_path / "c.pt").stat().st_mtime_ns == changed
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_a_checkpoint_of_another_training_is_refused(split, tmp_path):
    run(tiny(), split, checkpoint=Checkpoint(tmp_path / "c.pt"))
    for options in ({"seed": 1}, {"recipe": dataclasses.replace(SMALL, epochs=4)}, {"resolution": 10}):
        with pytest.raises(EvaluatorError, match="c.pt: checkpoint of another training"):
            run(tiny(), split, options.pop("recipe", SMALL), checkpoint=Checkpoint(tmp_path / "c.pt"), **options)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 half a file"])
def test_a_damaged_checkpoint_starts_anew(split, tmp_path, content, caplog):
    (tmp_path / "c.pt").write_bytes(content)
    assert without_seconds(run(tiny(), split, checkpoint=Checkpoint(tmp_path / "c.pt"))) == without_seconds(run(tiny(), split))
    assert "training starts anew" in caplog.text


def test_a_checkpoint_with_code_in_it_is_not_run(split, tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("code from a checkpoint ran",))

    torch.save({"identity": Payload()}, tmp_path / "c.pt")
    assert len(run(tiny(), split, checkpoint=Checkpoint(tmp_path / "c.pt"))) == 3


def test_a_loss_that_is_not_finite_ends_the_training_with_step_and_rate(split):
    recipe = dataclasses.replace(SMALL, learning_rate=1e30, rate_batch=0, warmup=0)
    with pytest.raises(TrainingDiverged, match=r"loss is not finite at step \d+, learning rate .*lower recipe.learning_rate") as caught:
        run(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10)), split, recipe)
    assert 0 < caught.value.step < 9 and caught.value.learning_rate == lr_at(recipe, caught.value.step, 9)
    import pickle

    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


class Poisoned(nn.Module):
    """NaN from the given forward pass in training mode on."""

    def __init__(self, step):
        super().__init__()
        self.linear, self.step, self.calls = nn.Linear(3, 10), step, 0

    def forward(self, x):
        self.calls += self.training
        return self.linear(x.mean((2, 3))) * (float("nan") if self.calls > self.step else 1.0)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_the_step_of_the_first_bad_loss(split, step):
    with pytest.raises(TrainingDiverged) as caught:
        run(Poisoned(step), split)
    assert caught.value.step == step


def test_stopping_is_not_asking_for_more(split):
    stream = train(tiny(), split, dataclasses.replace(SMALL, epochs=10_000), resolution=8, macs=lambda side: 1, device="cpu")
    assert next(stream).epoch == 1
    stream.close()


def test_a_set_smaller_than_a_batch_is_one_batch_at_its_own_rate(split):
    few = dataclasses.replace(split, train=split.train[:7])
    history = run(tiny(), few, dataclasses.replace(SMALL, batch=64, epochs=2))
    assert [stats.images for stats in history] == [7, 14]
    assert history[-1].learning_rate == lr_at(dataclasses.replace(SMALL, batch=7, epochs=2), 1, 2)


def test_one_image_cannot_train(split):
    with pytest.raises(Exception, match="1 training images; BatchNorm needs at least 2"):
        run(tiny(), dataclasses.replace(split, train=split.train[:1]))


def test_without_average_the_weights_themselves_are_evaluated(split):
    model = tiny()
    history = run(model, split, dataclasses.replace(SMALL, ema=0.0))
    recipe = dataclasses.replace(SMALL, ema=0.0)
    accuracy, loss = evaluate_on(model, ImageSet(split.data.images[split.validation], split.data.labels[split.validation]), split, recipe,
                                 resolution=8, device="cpu")
    assert (accuracy, loss) == (history[-1].accuracy, history[-1].loss)


def test_evaluation_against_a_plain_sum(split):
    model = tiny()
    history = run(model, split)
    model.eval()
    mean, deviation = (np.array(v) for v in split.statistics)
    images = (split.data.images[split.validation] / 255 - mean) / deviation
    logits = model(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)).detach().double()
    labels = split.data.labels[split.validation]
    assert history[-1].accuracy == (logits.argmax(1).numpy() == labels).mean()
    rows = logits.numpy()
    expected = np.mean([math.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, labels, strict=True)])
    assert history[-1].loss == pytest.approx(expected, rel=1e-5)


def test_layout_changes_speed_and_not_results(split):
    last = [run(build_model(NETWORK, bn_momentum=0.2, seed=0), split, dataclasses.replace(SMALL, channels_last=layout, epochs=1),
                resolution=10)[-1] for layout in (True, False)]
    assert last[0].train_loss == pytest.approx(last[1].train_loss, rel=1e-3)


def test_random_labels_stay_near_chance():
    rng = np.random.default_rng(0)
    data = ImageSet(rng.integers(0, 256, (400, 8, 8, 3), np.uint8), rng.integers(0, 10, 400))
    split = Split(data, np.arange(200), np.arange(200, 400), 10)
    assert run(tiny(), split)[-1].accuracy < 0.1 + 4 * (0.09 / 200) ** 0.5


def test_devices():
    assert torch_device("cpu").type == "cpu" and torch_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="device=gpu: no such device; write auto, cpu, cuda"):
        torch_device("gpu")
    with pytest.raises(ConfigError, match="CUDA devices; write device=auto or cpu"):
        torch_device("cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_learns_and_resumes(split, tmp_path):
    recipe = dataclasses.replace(SMALL, epochs=4)
    there = {"resolution": 10, "device": "cuda", "checkpoint": Checkpoint(tmp_path / "c.pt")}
    history = run(build_model(NETWORK, bn_momentum=0.2, seed=0), split, recipe, **there)
    assert len(history) == 4 and history[-1].train_loss < history[0].train_loss
    again = run(build_model(NETWORK, bn_momentum=0.2, seed=0), split, recipe, **there)
    assert again == history
    with pytest.raises(TrainingDiverged) as caught:
        run(Poisoned(4), split, device="cuda")
    assert caught.value.step == 4


def test_validation_in_smaller_batches_when_memory_runs_out(split):
    class Small(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.sizes = model, []

        def forward(self, x):
            self.sizes.append(len(x))
            if len(x) > 20:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return self.model(x)

    small, images = Small(tiny()), ImageSet(split.data.images[split.validation], split.data.labels[split.validation])
    assert evaluate_on(small, images, split, SMALL, resolution=8, device="cpu") == pytest.approx(
        evaluate_on(tiny(), images, split, SMALL, resolution=8, device="cpu"))
    assert small.sizes[:3] == [100, 64, 32] and sum(size for size in small.sizes if size <= 20) == 100


def test_bf16_on_a_cpu_trains(split):
    recipe = dataclasses.replace(SMALL, precision="bf16", epochs=1)
    history = run(build_model(NETWORK, bn_momentum=0.2, seed=0), split, recipe, resolution=10)
    assert math.isfinite(history[-1].train_loss)


def test_when_compiling_pays():
    def epochs(*seconds):
        return [EpochStats(i + 1, 0.5, 1.0, 1.0, sum(seconds[:i + 1]), 1, 1.0, 0.1) for i in range(len(seconds))]

    assert not compiling_pays([], 1000)
    assert not compiling_pays(epochs(10), 20) and compiling_pays(epochs(10), 100)
    assert compiling_pays(epochs(10, 70), 100) and compiling_pays(epochs(10, 70, 6), 100)
    assert not compiling_pays(epochs(10, 70, 11), 100) and not compiling_pays(epochs(10, 70, 11, 10), 100)
