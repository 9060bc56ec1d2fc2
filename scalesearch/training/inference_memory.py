"""Peak memory of a forward pass: weights, images and maps that are alive together.

It needs no repetition. On a CPU every storage that an operation hands out is counted while it lives,
workspaces of the libraries aside, so that the figure is the same on every machine; on a GPU the
allocator is asked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalesearch.architecture import Architecture, Block
from scalesearch.networks.build import build_model
from scalesearch.training.devices import place, wants_bf16
from scalesearch.training.step import autocast
from scalesearch.training.workload import block_module, maps_of, measuring

if TYPE_CHECKING:
    from scalesearch.training.timing import Setup


def peak_memory(architecture: Architecture, setup: Setup) -> int:
    """Bytes alive at the peak of a forward pass: weights, images and maps."""
    recipe = setup.recipe
    with measuring(architecture, setup):
        return _peak(lambda: build_model(architecture, padding=recipe.padding, seed=0),
                     (architecture.image_channels, architecture.resolution), setup)[1]


def block_memory(block: Block, setup: Setup) -> tuple[int, int]:
    """Bytes of a block's weights, and those beside them at the peak of its forward pass, its input included."""
    weights, peak = _peak(lambda: block_module(block, setup.recipe), (block.inputs, block.size_in), setup)
    return weights, peak - weights


def _peak(build: Callable[[], nn.Module], shape: tuple[int, int], setup: Setup) -> tuple[int, int]:
    """Bytes of the weights, and at the peak of a forward pass."""
    device = setup.torch_device
    if device.type == "cuda":
        return _cuda_peak(build, shape, setup)
    model = place(build(), setup.recipe, device)
    weights = sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers()))
    maps = maps_of(setup, *shape)
    model.eval()
    with torch.no_grad(), autocast(device, wants_bf16(setup.recipe, device)), Allocations() as seen:
        seen.note(maps)
        seen.known(model)
        model(maps)
    return weights, weights + seen.peak


def _cuda_peak(build: Callable[[], nn.Module], shape: tuple[int, int], setup: Setup) -> tuple[int, int]:
    device = setup.torch_device
    before = torch.cuda.memory_allocated(device)
    model = place(build(), setup.recipe, device).eval()
    weights = torch.cuda.memory_allocated(device) - before
    maps = maps_of(setup, *shape)
    for _ in range(2):  # the first pass makes the libraries' handles and workspaces
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        with torch.inference_mode(), autocast(device, wants_bf16(setup.recipe, device)):
            model(maps)
    torch.cuda.synchronize(device)
    return weights, torch.cuda.max_memory_allocated(device) - before


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations hand out, while they live.

    `peak` is the most that were alive at a time; those of a model made known before do not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.peak = 0
        self._own: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing the compiler takes seconds

    def known(self, model: nn.Module) -> None:
        self._own.update(tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers()))

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive and key not in self._own and storage.nbytes():
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value)
        return result
