"""Two processes over gloo train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scalesearch.errors import ConfigError
from scalesearch.training.distributed import World, join_world, launched

SCRIPT = """
import dataclasses, json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from torch import nn
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import DataSettings, load_data
from scalesearch.training.distributed import join_world, leave_world
from scalesearch.training.loop import train
from scalesearch.training.recipe import Recipe

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))

cache, out, micro = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
split = load_data(DataSettings(limit=300, cache=cache)).split(0, 2)
recipe = Recipe(epochs=2, batch=32, micro_batch=micro, warmup=1, shift=0.1, bn_momentum=0.2)
model = network()
history = [dataclasses.asdict(stats) for stats in train(model, split, recipe, resolution=8, macs=lambda side: 1000, device="cpu",
                                                          checkpoint=Checkpoint(out / "checkpoint.pt"))]
world = join_world()
if world.leads:
    (out / "history.json").write_text(json.dumps([history, [float(p.double().sum()) for p in model.state_dict().values()]]))
leave_world()
"""


def train_on(processes: int, tmp_path: Path, micro: int) -> list:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / f"out-{processes}-{micro}"
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        running.append(subprocess.Popen([sys.executable, str(script), str(tmp_path / "cache"), str(out), str(micro)], env=env,
                                        stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return json.loads((out / "history.json").read_text())


def test_two_processes_have_the_losses_of_one(tmp_path):
    (one, sums), (two, sums_of_two) = (train_on(n, tmp_path, 32) for n in (1, 2))
    assert [e["train_loss"] for e in two] == pytest.approx([e["train_loss"] for e in one], rel=1e-4)
    assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in one], rel=1e-4)
    assert [e["accuracy"] for e in two] == pytest.approx([e["accuracy"] for e in one], abs=0.0071)  # one image may tip over
    assert sums_of_two == pytest.approx(sums, rel=1e-3, abs=1e-3)
    assert (tmp_path / "out-2-32" / "checkpoint.pt").exists()


def test_shares_make_up_the_batch():
    batch = slice(64, 96)
    parts = [World(rank, 4).share(batch) for rank in range(4)]
    assert [(part.start, part.stop) for part in parts] == [(64, 72), (72, 80), (80, 88), (88, 96)]
    assert World().share(batch) == batch


def test_a_batch_that_cannot_be_shared_is_refused():
    World(0, 2).check_batch(32)
    with pytest.raises(ConfigError, match="recipe.batch=33: 2 processes take equal shares; write a multiple of 2"):
        World(0, 2).check_batch(33)


def test_alone_nothing_happens(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.BatchNorm2d(3)
    assert not launched() and join_world() == World(0, 1) and World().leads
    assert World().wrap(model, torch.device("cpu")) is model and type(model) is nn.BatchNorm2d
    assert World().broadcast("x") == "x" and World().any(True, torch.device("cpu"))
    assert torch.equal(World().mean(torch.ones(2)), torch.ones(2))


def test_torchrun_trains_and_the_leader_alone_writes(tmp_path):
    words = ["train", "architecture=efficientnet_b0_small", "data.limit=100", f"data.cache={tmp_path / 'cache'}", "recipe=quick",
             "recipe.epochs=1", "recipe.batch=16", f"results={tmp_path}", "name=two", "report=false"]
    def torchrun():
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "scalesearch", *words]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180)

    done = torchrun()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run     ") == 1 and "Warning" not in done.stderr
    assert len((tmp_path / "two" / "records.jsonl").read_text().splitlines()) == 1
    assert len(list(tmp_path.glob("two/candidates/*/*/weights.safetensors"))) == 1
    words[words.index("recipe.batch=16")] = "recipe.batch=15"
    refused = torchrun()
    assert refused.returncode != 0 and "recipe.batch=15: 2 processes take equal shares; write a multiple of 2" in refused.stderr
