"""Weights in files and from timm.

Weights are kept in safetensors: tensors and text, no code. A file written here carries its own
architecture, padding and BatchNorm epsilon as metadata, so that `load_model` rebuilds the network.
PyTorch checkpoints are read with `weights_only=True` and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.errors import ArchitectureError, ConfigError, unknown
from scalesearch.networks.build import Conv2dSame, Network, Padding, build_model

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
        save_file(state, part, {**_describe(model), **(metadata or {})})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> Loaded:
    """Load a .safetensors file or a PyTorch checkpoint into `model`; what it returns says what happened.

    A classifier for another number of classes is left as initialised. Any other difference is an
    ArchitectureError when `strict`, and is listed in the result when not.
    """
    state, metadata = read_weights(path)
    loaded = _compare(model, state, metadata)
    if strict and (loaded.missing or loaded.unused):
        raise ArchitectureError(f"{path}: weights of another network, {loaded}; pass strict=False to take what fits")
    _assign(model, state, loaded)
    return loaded


def load_model(path: str | Path, *, dropout: float = 0.0, stochastic_depth: float = 0.0, classes: int | None = None) -> Network:
    """The network of a file written by `save_weights`, with its weights; `classes` gives it a new classifier."""
    state, metadata = read_weights(path)
    if "architecture" not in metadata:
        raise ArchitectureError(f"{path}: does not say which network it belongs to; build the model and use load_weights")
    architecture = Architecture.from_json(metadata["architecture"])
    architecture = architecture.replace(name=metadata.get("name", ""), classes=classes or architecture.classes)
    padding = cast(Padding, metadata.get("padding", "symmetric"))
    model = build_model(architecture, dropout=dropout, stochastic_depth=stochastic_depth, padding=padding,
                        bn_eps=float(metadata.get("bn_eps", 1e-3)))
    loaded = _compare(model, state, metadata)
    if loaded.missing or loaded.unused:
        raise ArchitectureError(f"{path}: the weights do not fit the network that the file describes, {loaded}; it is damaged")
    _assign(model, state, loaded)
    return model


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(state dict, metadata) of a .safetensors file or a PyTorch checkpoint, on the CPU."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"weights={path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its reader stumbles over
        raise ConfigError(f"weights={path}: not a weights-only PyTorch checkpoint ({_first_line(error)})") from None
    return _state_dict(content, path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
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


def _compare(model: nn.Module, state: State, metadata: Mapping[str, str] | None = None) -> Loaded:
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
    same = any(isinstance(module, Conv2dSame) for module in model.modules())
    return {"architecture": model.architecture.to_json(), "name": model.architecture.name,
            "padding": "same" if same else "symmetric", "bn_eps": repr(_bn_eps(model))}


def _bn_eps(model: nn.Module) -> float:
    return next(module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# timm's names of the presets. Most exist with the prefix tf_ too: TensorFlow's padding and epsilon.
TIMM_NAMES = {
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(9)}, "efficientnet_l2": "efficientnet_l2",
    **{f"efficientnet_lite{i}": f"efficientnet_lite{i}" for i in range(5)},
    **{f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in ("s", "m", "l", "xl")},
    **{f"tf_efficientnetv2_b{i}": f"efficientnet_v2_b{i}" for i in range(4)},
    "mobilenetv1_100": "mobilenet_v1", "mobilenetv2_100": "mobilenet_v2", "mnasnet_100": "mnasnet_b1",
    "semnasnet_100": "mnasnet_a1", "mnasnet_small": "mnasnet_small", "resnet50": "resnet50", "resnet152": "resnet152",
}


@dataclass(frozen=True, slots=True)
class TimmWeights:
    """A timm model's weights and what a `Network` needs to run them; mean and std of its input images."""

    architecture: Architecture
    state: State
    padding: Padding
    bn_eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self, *, classes: int | None = None, dropout: float = 0.0, stochastic_depth: float = 0.0) -> Network:
        """The network with these weights; another number of classes gets a new classifier."""
        architecture = self.architecture.replace(classes=classes or self.architecture.classes)
        model = build_model(architecture, dropout=dropout, stochastic_depth=stochastic_depth,
                            padding=self.padding, bn_eps=self.bn_eps)
        loaded = _compare(model, self.state)
        assert not loaded.missing and not loaded.unused, loaded
        _assign(model, self.state, loaded)
        return model


def timm_weights(name: str, pretrained: bool = True) -> TimmWeights:
    """The weights of a timm model that is one of the presets: `efficientnet_b0`, `tf_efficientnetv2_s.in21k`, `timm:resnet50`.

    `pretrained` downloads them (the Hugging Face cache is used); without it they are timm's random
    ones. The architecture has timm's input size and class count. ConfigError without timm.
    """
    timm = import_timm()
    name = name.removeprefix("timm:")
    base = name.partition(".")[0]
    preset = TIMM_NAMES.get(base) or TIMM_NAMES.get(base.removeprefix("tf_"))
    if preset is None or not timm.is_model(name):
        raise ConfigError(unknown("timm model among the presets", name, TIMM_NAMES))
    model = timm.create_model(name, pretrained=pretrained)
    cfg = model.pretrained_cfg
    architecture = load_architecture(preset).replace(
        classes=model.num_classes, resolution=cfg["input_size"][-1], name=name)
    padding: Padding = "same" if name.startswith("tf_") else "symmetric"
    return TimmWeights(architecture, model.state_dict(), padding, _bn_eps(model), tuple(cfg["mean"]), tuple(cfg["std"]))


def import_timm() -> Any:
    """timm, or one line that names the extra."""
    try:
        import timm
    except ImportError:
        raise ConfigError("timm models need the extra: pip install 'scalesearch[timm]'") from None
    return timm
