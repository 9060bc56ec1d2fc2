"""Killed, stopped or closed at any moment, a training goes on bit by bit as if nothing had happened."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from scalesearch import stopping
from scalesearch.errors import ConfigError
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import DataSettings, load_data
from scalesearch.training.loop import train
from scalesearch.training.recipe import Recipe

RECIPES = {
    "plain": Recipe(epochs=3, batch=32, learning_rate=0.1, warmup=1, shift=0.1, dropout=0.2),
    "v1": Recipe(epochs=3, batch=32, optimizer="rmsprop_tf", learning_rate=0.02, warmup=1, schedule="exponential", shift=0.0, area=0.5,
                 policy="autoaugment", dropout=0.2),
    "v2": Recipe(epochs=4, batch=32, stages=2, size=(0.5, 1.0), policy="randaugment", magnitude=(2.0, 8.0), mixup=(0.0, 0.2), cutmix=0.5,
                 erasing=0.3, shift=0.0, area=0.5, dropout=(0.0, 0.3), learning_rate=0.1, warmup=1),
}
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import DataSettings, load_data
from scalesearch.training.loop import train
sys.path.insert(0, sys.argv[1])
from networks import RECIPE, network
split = load_data(DataSettings(limit=300, cache=Path(sys.argv[2]))).split(0, 2)
model = network()
for stats in train(model, split, RECIPE, resolution=16, macs=lambda side: 1000, device="cpu",
                   checkpoint=Checkpoint(Path(sys.argv[3]) / "c.pt", seconds=0.0)):
    pass
torch.save(model.state_dict(), Path(sys.argv[3]) / "final.pt")
"""
NETWORK = """
import torch
from torch import nn
from scalesearch.training.recipe import Recipe

RECIPE = Recipe(epochs=6, batch=10, learning_rate=0.1, warmup=1, shift=0.1, dropout=0.2)

def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU(),
                          nn.AdaptiveAvgPool2d(4), nn.Flatten())
    model.add_module("dropout", nn.Dropout(0.2))
    model.add_module("classifier", nn.Linear(256, 10))
    return model
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def split(cache):
    return dataclasses.replace(load_data(DataSettings(limit=300, cache=cache)).split(0, 2), mirror=True)


def tiny(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model.add_module("dropout", nn.Dropout(0.0))
    model.add_module("classifier", nn.Linear(32, 10))
    return model


def stream(model, split, recipe, checkpoint=None, **options):
    return train(model, split, recipe, resolution=8, macs=lambda side: float(side), device="cpu", checkpoint=checkpoint, **options)


def comparable(history):
    return [dataclasses.replace(stats, seconds=0.0) for stats in history]


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class StopAfter:
    """Says stop when it is asked for the n-th time."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("times", [1, 4, 5, 7, 9])  # asked 4 times in an epoch's steps and twice in its validation
def test_stopped_in_mid_epoch_it_goes_on_as_if_nothing_had_been(split, tmp_path, recipe, times):
    straight, resumed = tiny(), tiny(seed=9)
    whole = list(stream(straight, split, recipe))
    with pytest.raises(stopping.Terminated) as caught:
        list(stream(tiny(), split, recipe, Checkpoint(tmp_path / "c.pt"), stop=StopAfter(times)))
    assert caught.value.code == 143
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (len(state["history"]), state["place"]) == ((times - 1) // 6, min((times - 1) % 6 + 1, 4))
    assert comparable(stream(resumed, split, recipe, Checkpoint(tmp_path / "c.pt"))) == comparable(whole)
    assert same_weights(straight, resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_an_older_checkpoint_in_mid_epoch_serves_as_well(split, tmp_path):
    """What a kill leaves is the last file written, whenever that was."""
    recipe, kept = RECIPES["v2"], []
    straight = tiny()
    for stats in stream(straight, split, recipe, Checkpoint(tmp_path / "c.pt", seconds=0.0), stop=lambda: bool(kept.append(
            (tmp_path / "c.pt").read_bytes() if (tmp_path / "c.pt").exists() else b""))):
        last = stats
    for number in (2, 7, 11):
        (tmp_path / "c.pt").write_bytes(kept[number])
        resumed = tiny(seed=3)
        assert comparable([list(stream(resumed, split, recipe, Checkpoint(tmp_path / "c.pt")))[-1]]) == comparable([last])
        assert same_weights(straight, resumed)


def test_a_closed_stream_leaves_its_checkpoint(split, tmp_path):
    running = stream(tiny(), split, RECIPES["plain"], Checkpoint(tmp_path / "c.pt"))
    next(running)
    assert not (tmp_path / "c.pt").exists()  # a minute has not passed
    running.close()
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == 1


def test_how_often_it_is_written(split, tmp_path, monkeypatch):
    from scalesearch.training import loop

    written = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda state, path: written.append((len(state["history"]), state["place"])))
    list(stream(tiny(), split, RECIPES["plain"], Checkpoint(tmp_path / "c.pt", seconds=0.0)))
    assert written == [(e, p) for e in range(3) for p in range(1, 5)] + [(3, 0)]
    written.clear()
    list(stream(tiny(), split, RECIPES["plain"], Checkpoint(tmp_path / "c.pt", seconds=1e9)))
    assert written == [(3, 0)]
    with pytest.raises(ConfigError, match="seconds=-1"):
        Checkpoint(tmp_path / "c.pt", seconds=-1)


def test_a_diverged_training_keeps_its_last_good_checkpoint(split, tmp_path):
    from scalesearch.training.loop import TrainingDiverged

    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 10), 0

        def forward(self, x):
            self.calls += self.training
            return self.linear(x.mean((2, 3))) * (float("nan") if self.calls > 6 else 1.0)

    with pytest.raises(TrainingDiverged, match="step 6, learning rate"):
        list(stream(Poisoned(), split, RECIPES["plain"], Checkpoint(tmp_path / "c.pt", seconds=0.0)))
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (len(state["history"]), state["place"]) == (1, 2)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def start(tmp_path, cache, out):
    (tmp_path / "networks.py").write_text(NETWORK)
    (tmp_path / "script.py").write_text(SCRIPT)
    out.mkdir(exist_ok=True)
    with (out / "errors").open("w") as errors:
        return subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(cache), str(out)],
                                env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=errors)


def test_kill_9_in_mid_epoch(tmp_path, cache, split):
    straight = start(tmp_path, cache, tmp_path / "straight")
    assert straight.wait(120) == 0, (tmp_path / "straight" / "errors").read_text()
    killed = start(tmp_path, cache, tmp_path / "killed")
    checkpoint, place = tmp_path / "killed" / "c.pt", 0
    while not place:  # a checkpoint in the middle of an epoch
        assert killed.poll() is None, (tmp_path / "killed" / "errors").read_text()
        time.sleep(0.01)
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            place = state["place"] % 15 if len(state["history"]) else 0
    killed.kill()
    assert killed.wait(10) == -signal.SIGKILL and not (tmp_path / "killed" / "final.pt").exists()
    again = start(tmp_path, cache, tmp_path / "killed")
    assert again.wait(120) == 0, (tmp_path / "killed" / "errors").read_text()
    one, other = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("straight", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_sigterm_writes_a_checkpoint_and_exits_with_143(tmp_path):
    words = ["train", "architecture=efficientnet_b0_small", "data.limit=400", f"data.cache={tmp_path / 'cache'}", "recipe.epochs=200",
             "recipe.batch=32", f"results={tmp_path}", "name=run", "report=false"]
    running = subprocess.Popen([sys.executable, "-m", "scalesearch", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    started = time.monotonic()
    while not list(tmp_path.glob("run/candidates/*/*/history.csv")):
        assert running.poll() is None and time.monotonic() - started < 120, running.stderr.read()
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143, errors
    assert "the same command continues from there" in errors and "Traceback" not in errors
    assert len(list(tmp_path.glob("run/candidates/*/*/checkpoint.pt"))) == 1


def test_sigterm_outside_a_training_ends_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        stopping.handle_sigterm()
        with pytest.raises(stopping.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        stopping.handle_sigterm()
        with stopping.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert stopping.requested()
        stopping.handle_sigterm()
        assert not stopping.requested()
    finally:
        signal.signal(signal.SIGTERM, before)
