"""Weights in files.

Weights are kept in safetensors: tensors and text, no code. A file written here carries its own
architecture, padding and BatchNorm epsilon as metadata, so that pretrained.py rebuilds the network.
PyTorch checkpoints are read with `weights_only=True` and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalesearch.errors import ArchitectureError, ConfigError
from scalesearch.networks.build import Network

State = Mapping[str, Tensor]
CLASSIFIERS = ("classifier", "fc")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_weights` did: the file's metadata and the names it could not take over."""

    metadata: Mapping[str, str]
    replaced: tuple[str, ...] = ()  # classifier parameters left as they were, the class counts being different
    missing: tuple[str, ...] = ()  # in the model, not in the file
    unused: tuple[str, ...] = ()  # in the file, of no use to the model

    def __str__(self) -> str:
        notes = [f"classifier left as initialised ({', '.join(self.replaced)}): class counts differ"] if self.replaced else []
        for what, names in (("missing", self.missing), ("unused", self.unused)):
            notes += [f"{len(names)} {what} ({names[0]} …)"] if names else []
        return "; ".join(notes) or "all weights loaded"


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's state dict as safetensors, atomically; metadata is text to text.

    A `Network` adds its architecture (JSON), name, padding and bn_eps to the metadata.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # channels-last weights are not contiguous, and safetensors writes only those that are
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(state, part, dict(sorted({**_describe(model), **(metadata or {})}.items())))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> Loaded:
    """Load a .safetensors file or a PyTorch checkpoint into `model`; what it returns says what happened.

    A classifier for another number of classes is left as initialised. Any other difference is an
    ArchitectureError when `strict`, and is listed in the result when not.
    """
    state, metadata = read_weights(path)
    loaded = compare(model, state, metadata)
    if strict and (loaded.missing or loaded.unused):
        raise ArchitectureError(f"{path}: weights of another network, {loaded}; pass strict=False to take what fits")
    _assign(model, state, loaded)
    return loaded


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict, metadata) of a .safetensors file or a PyTorch checkpoint, on the CPU."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"weights={path}: no such file")
    if path.suffix == ".safetensors":
        return _open_safetensors(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its reader stumbles over
        raise ConfigError(f"weights={path}: not a weights-only PyTorch checkpoint ({_first_line(error).partition('. ')[0]})") from None
    return _state_dict(content, path), {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file, without its tensors."""
    return _open_safetensors(Path(path), lambda file: {})[1]


def _open_safetensors(path: Path, tensors: Callable[[Any], dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return tensors(file), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"weights={path}: not a safetensors file ({_first_line(error)})") from None


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, under one of the usual keys, without DataParallel's prefix."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"weights={path}: holds no state dict of tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def compare(model: nn.Module, state: State, metadata: Mapping[str, str] | None = None) -> Loaded:
    """Which names of a state dict fit the model by name and shape; nothing is changed."""
    own = model.state_dict()
    fits = {name for name in own if name in state and own[name].shape == state[name].shape}
    replaced = tuple(name for name in own if name in state and name not in fits and _another_class_count(name, own, state))
    missing = tuple(name for name in own if name not in fits and name not in replaced)
    unused = tuple(name for name in state if name not in fits and name not in replaced)
    return Loaded(metadata or {}, replaced, missing, unused)


def _assign(model: nn.Module, state: State, loaded: Loaded) -> None:
    left = {*loaded.replaced, *loaded.unused}
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in left}, strict=False)


def _another_class_count(name: str, own: State, state: State) -> bool:
    """A classifier parameter whose shapes differ in the first dimension only."""
    return name.partition(".")[0] in CLASSIFIERS and own[name].shape[1:] == state[name].shape[1:]


def _describe(model: nn.Module) -> dict[str, str]:
    if not isinstance(model, Network):
        return {}
    return {"architecture": model.architecture.to_json(), "name": model.architecture.name,
            "padding": model.padding, "bn_eps": repr(_bn_eps(model))}


def _bn_eps(model: nn.Module) -> float:
    return next(module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
