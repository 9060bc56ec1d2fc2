"""The formats of an export: how each is written, and how it is read back to be compared.

Every format has a writer and a reader. The reader returns what the file makes of images, by the
software that will read it later (timm, onnxruntime, torch.export, safetensors); a file without
logits of its own (preprocessing, card) is read and compared with what it was written from.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import to_mapping
from scalesearch.errors import ArchitectureError, RunError
from scalesearch.networks.build import Network, build_model
from scalesearch.networks.pretrained import EXPORTED_FILE, Pretrained, load_pretrained
from scalesearch.networks.provenance import Provenance
from scalesearch.networks.timm_models import read_timm_definition, register, timm_definition
from scalesearch.networks.weights import save_weights
from scalesearch.records import write_atomic

Run = Callable[[Tensor], Tensor]
"""Images [batch, channels, resolution, resolution], normalised, to logits [batch, classes]."""

# Images on which formats are compared, and how many of them trace a graph: another number than is run afterwards.
CHECKED, TRACED = 3, 2


@dataclass(frozen=True, eq=False)
class Source:
    """What is exported. `trained` is False for an architecture alone, whose weights are drawn from seed 0 to compare formats."""

    weights: Pretrained
    trained: bool = True
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def architecture(self) -> Architecture:
        return self.weights.architecture

    @functools.cached_property
    def model(self) -> Network:
        """On the CPU, in evaluation mode, without gradients."""
        return self.weights.build().cpu().eval().requires_grad_(False)

    @functools.cached_property
    def digest(self) -> str:
        """Of the weights as they are written: in the network's own precision."""
        return replace(self.weights, state=self.model.state_dict()).digest

    @functools.cached_property
    def images(self) -> Tensor:
        """Standardised noise, the same every time."""
        network = self.architecture
        shape = (CHECKED, network.image_channels, network.resolution, network.resolution)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @functools.cached_property
    def logits(self) -> Tensor:
        return logits_of(self.model, self.images)

    @functools.cached_property
    def rounding(self) -> float:
        """By how much the network's own logits are off in single precision: nothing can be told apart below it.

        About 1e-6 of the logits where training has settled; weights that blow images up can make it percents.
        """
        exact = logits_of(copy.deepcopy(self.model).double(), self.images.double())
        return float((exact - self.logits).abs().max())

    @functools.cached_property
    def program(self) -> Any:
        """The traced graph with a free batch size; ONNX is made from the one that torch.export writes."""
        with _quiet():
            return torch.export.export(self.model, (self.images[:TRACED],), dynamic_shapes=({0: torch.export.Dim("batch")},))


def logits_of(run: Run, images: Tensor) -> Tensor:
    """Of all images together, then of the first alone: files have to take any number of images."""
    with torch.no_grad():  # not inference mode: weights that are read meanwhile stay in load_pretrained's memory
        return torch.cat([run(images), run(images[:1])])


def fresh(architecture: Architecture) -> Source:
    """A network without weights."""
    return Source(Pretrained("", architecture, build_model(architecture, seed=0).state_dict(), "symmetric", 1e-3), trained=False)


class Format(NamedTuple):
    """A row of FORMATS.

    read      None where the file has no logits: it is the JSON of what `prepare` returns
    packages  what has to be installed
    trained   whether it makes no sense without weights
    prepare   raises ArchitectureError for a network that the format has no place for
    """

    file: str
    meaning: str
    write: Callable[[Source, Path], None]
    read: Callable[[Source, Path], Run] | None
    packages: tuple[str, ...] = ()
    trained: bool = True
    prepare: Callable[[Source], Any] = lambda source: None


# ---------------------------------------------------------------------------- the network's description

def write_yaml(source: Source, path: Path) -> None:
    write_atomic(path, source.architecture.to_yaml())


def write_json(source: Source, path: Path) -> None:
    write_atomic(path, source.architecture.to_json() + "\n")


def read_description(source: Source, path: Path) -> Run:
    """The network that the file describes, with the weights; RunError where it is another one."""
    network = load_architecture(path)
    if network.id != source.architecture.id:
        raise RunError(f"{path.name}: describes network {network.id}, not {source.architecture.id}")
    return replace(source.weights, architecture=network).build().eval()


# ---------------------------------------------------------------------------- timm

def write_timm(source: Source, path: Path) -> None:
    write_atomic(path, json.dumps(timm_definition(source.weights).to_mapping(), indent=1) + "\n")


def read_timm(source: Source, path: Path) -> Run:
    """The model that timm.create_model builds from the file, with the weights."""
    import timm

    name = register(read_timm_definition(path), f"scalesearch_{source.architecture.id}")
    model: torch.nn.Module = timm.create_model(name).eval()
    model.load_state_dict(source.model.state_dict(), strict=True)
    return model


# ---------------------------------------------------------------------------- weights

def write_safetensors(source: Source, path: Path) -> None:
    save_weights(source.model, path, metadata(source))


def read_safetensors(source: Source, path: Path) -> Run:
    """The network that load_pretrained makes of the file; RunError where anything of it differs from what was exported."""
    found = load_pretrained(path)
    if found.digest != source.digest:
        raise RunError(f"{path.name}: digest {found.digest} after reading, {source.digest} before writing")
    return found.build().eval()


def metadata(source: Source) -> dict[str, str]:
    """Text to text, JSON each: what `train` writes, and where the weights come from."""
    weights, provenance = source.weights, source.provenance
    mean, std = weights.normalisation or (None, None)
    own = {key: provenance.accuracy.get(key) for key in ("accuracy", "test_accuracy")}
    entries = {"mean": mean, "std": std, **weights.view._asdict(), "classes": weights.class_names, **own,
               "seed": provenance.lineage.get("seed"), "lineage": provenance.lineage or None, "accuracies": provenance.accuracy or None}
    return {key: json.dumps(to_mapping(value), ensure_ascii=False) for key, value in entries.items() if value is not None}


# ---------------------------------------------------------------------------- graphs

def write_torch_export(source: Source, path: Path) -> None:
    stream = io.BytesIO()  # torch.export.save minds the name of the file, and a part is not called .pt2
    torch.export.save(source.program, stream, extra_files={"metadata.json": json.dumps(described(source))})
    path.write_bytes(stream.getvalue())


def read_torch_export(source: Source, path: Path) -> Run:
    with _quiet():
        run: Run = torch.export.load(path).module()
    return run


def write_onnx(source: Source, path: Path) -> None:
    with _quiet():
        program: Any = torch.onnx.export(source.program, (), dynamo=True, input_names=["images"], output_names=["logits"],
                                         dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    program.model.metadata_props.update(described(source))
    program.save(path)


def read_onnx(source: Source, path: Path) -> Run:
    """By onnxruntime on the CPU, in the number of threads that torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def described(source: Source) -> dict[str, str]:
    """The metadata of a graph: that of the weights and the network itself."""
    return {**metadata(source), "architecture": source.architecture.to_json(), "name": source.architecture.name, "digest": source.digest}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress, log lines and warnings of torch's exporters about their own inside: the logits say whether it went well."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------------------- images

def write_preprocessing(source: Source, path: Path) -> None:
    write_atomic(path, json.dumps(preprocessing(source), indent=1, ensure_ascii=False) + "\n")


def preprocessing(source: Source) -> dict[str, Any]:
    """What is done to a picture before the network sees it, as `predict` does it.

    The central square of `crop` of the short side, by bicubic interpolation with antialiasing; where `side` is not null it is
    made that large first, as the images of the training were stored, and resized by bilinear interpolation then. Divided
    by `scale`, minus `mean`, divided by `std`; channels first. ArchitectureError where the normalisation is not on record.
    """
    network, weights = source.architecture, source.weights
    if weights.normalisation is None:
        raise ArchitectureError(f"{weights.name}: mean and deviation of its images are not on record; export formats that need none")
    return {"resolution": network.resolution, "channels": network.image_channels, **weights.view._asdict(), "scale": 255,
            "mean": list(weights.normalisation[0]), "std": list(weights.normalisation[1]),
            "classes": list(weights.class_names) if weights.class_names else None}


FORMATS: Mapping[str, Format] = {
    "yaml": Format("architecture.yaml", "the network, for architecture=", write_yaml, read_description, trained=False),
    "json": Format("architecture.json", "the network, canonical: its id is the hash of it", write_json, read_description, trained=False),
    "timm": Format("timm.json", "block strings and arguments of timm's builder", write_timm, read_timm, ("timm",), False,
                   lambda source: timm_definition(source.weights)),
    "preprocessing": Format("preprocessing.json", "from a picture to the network's input", write_preprocessing, None,
                            prepare=preprocessing),
    "safetensors": Format(EXPORTED_FILE, "weights, for pretrained= and weights=", write_safetensors, read_safetensors),
    "torch_export": Format("model.pt2", "graph and weights, for torch.export.load", write_torch_export, read_torch_export),
    "onnx": Format("model.onnx", "graph and weights, any batch size", write_onnx, read_onnx, ("onnx", "onnxruntime", "onnxscript")),
}
