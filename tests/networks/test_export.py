"""An export is read by the software it is for and gives the same logits; what does not is not kept."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from scalesearch.architecture import Architecture, Head, Stage, Stem, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ArchitectureError, ConfigError, RunError
from scalesearch.networks import export_formats
from scalesearch.networks.build import build_model
from scalesearch.networks.export import Exported, export_model, read_export
from scalesearch.networks.export_formats import FORMATS
from scalesearch.networks.pretrained import Pretrained, View, load_pretrained
from scalesearch.networks.timm_models import read_timm_definition, register
from scalesearch.networks.weights import read_metadata, save_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm", reason="the timm extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnxscript", reason="the onnx extra is not installed")

TINY = Architecture(Stem(8), (Stage("mbconv", 3, 8, 2, expansion=2, se_ratio=0.25),), Head(16), 5, 16, name="tiny")
NAMES = ("ant", "bee", "cat", "dog | wolf", "eel")
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def weights_of(network: Architecture, seed: int = 0, **changes: Any) -> Pretrained:
    """Random weights whose BatchNorms do something."""
    model, generator = build_model(network, seed=seed), torch.Generator().manual_seed(seed)
    state = {name: torch.rand(tensor.shape, generator=generator) + 0.5 if "running_var" in name else tensor
             for name, tensor in model.state_dict().items()}
    described: dict[str, Any] = {"normalisation": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), "class_names": NAMES, **changes}
    return Pretrained("", network, state, "same", 2e-3, **described)


@pytest.fixture(scope="module")
def weights() -> Pretrained:
    return weights_of(TINY, view=View(12, "centre"))


@pytest.fixture(scope="module")
def expected(weights: Pretrained) -> torch.Tensor:
    with torch.no_grad():
        return weights.build().eval()(IMAGES)


@pytest.fixture(scope="module")
def exported(weights: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_model(weights, tmp_path_factory.mktemp("export") / "all")


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-4 * min(1.0, float(expected.abs().max())))


# Round trips ----------------------------------------------------------------------------------------------------------


def test_every_format_is_written_and_agrees(exported: Exported) -> None:
    assert [row.format for row in exported.rows] == [*FORMATS, "card"] and all(row.file and not row.note for row in exported.rows)
    assert {path.name for path in exported.folder.iterdir()} == {"export.json", *(path.name for path in exported.files)}
    differences = {row.format: row.difference for row in exported.rows}
    assert differences["preprocessing"] is differences["card"] is None
    assert all(value <= 1e-4 * exported.largest for value in differences.values() if value is not None)
    assert differences["yaml"] == differences["json"] == differences["safetensors"] == 0
    assert exported.spread > 0.01 * exported.largest, "the logits depend on the image"
    cost = cost_of(TINY)
    assert (exported.id, exported.macs, exported.params) == (TINY.id, cost.macs, cost.params)


def test_the_network_survives_yaml_and_json(exported: Exported) -> None:
    assert load_architecture(exported.folder / "architecture.yaml") == TINY
    text = (exported.folder / "architecture.json").read_text(encoding="utf-8").strip()
    assert Architecture.from_json(text).id == TINY.id and text == TINY.to_json()


def test_onnxruntime_takes_any_number_of_images(exported: Exported, weights: Pretrained, expected: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("images", ["batch", 3, 16, 16])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 5])]
    for count in (4, 1):
        found = session.run(None, {"images": IMAGES[:count].numpy()})[0]
        assert close(torch.from_numpy(found), expected[:count])
    metadata = session.get_modelmeta().custom_metadata_map
    assert Architecture.from_json(metadata["architecture"]) == TINY and json.loads(metadata["classes"]) == list(NAMES)
    assert metadata["digest"] == weights.digest


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 about the bytes of its own file
def test_torch_export_takes_any_number_of_images(exported: Exported, expected: torch.Tensor) -> None:
    extra = {"metadata.json": ""}
    run = torch.export.load(exported.folder / "model.pt2", extra_files=extra).module()
    for count in (4, 1):
        assert close(run(IMAGES[:count]), expected[:count])
    assert json.loads(extra["metadata.json"])["name"] == "tiny"


def test_timm_builds_it_from_the_file(exported: Exported, expected: torch.Tensor) -> None:
    model = timm.create_model(register(read_timm_definition(exported.folder / "timm.json"), "exported")).eval()
    model.load_state_dict(load_pretrained(exported.folder / "model.safetensors").state, strict=True)
    with torch.no_grad():
        assert close(model(IMAGES), expected)
    data = timm.data.resolve_model_data_config(model)
    assert (data["mean"], data["std"], data["input_size"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (3, 16, 16))


def test_safetensors_has_the_same_digest_and_all_that_belongs_to_it(exported: Exported, weights: Pretrained) -> None:
    found = load_pretrained(exported.folder / "model.safetensors")
    assert found.digest == weights.digest == exported.digest
    assert (found.normalisation, found.class_names, found.view) == (weights.normalisation, NAMES, View(12, "centre"))
    again = export_model(exported.folder, exported.folder.parent / "again", ["safetensors"])
    assert again.digest == exported.digest


def test_a_crop_of_timms_survives_safetensors(tmp_path: Path) -> None:
    weights = weights_of(TINY, view=View(crop=0.875))
    export_model(weights, tmp_path, ["safetensors", "preprocessing"])
    assert load_pretrained(tmp_path / "model.safetensors").view == weights.view
    assert json.loads((tmp_path / "preprocessing.json").read_text())["crop"] == 0.875


def test_preprocessing_says_what_evaluation_does(exported: Exported, weights: Pretrained, tmp_path: Path) -> None:
    """By hand from the file, against the pixels of the data pipeline."""
    from scalesearch.training.pictures import as_inputs, read_pictures

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    images = json.loads((exported.folder / "preprocessing.json").read_text())
    assert (images["side"], images["keep"], images["crop"], images["resolution"]) == (12, "centre", 1.0, 16)
    shown = as_inputs(read_pictures([tmp_path / "picture.png"], weights.view, 16).pixels, weights)[0].permute(1, 2, 0)
    square = Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC, box=(5, 0, 25, 20))
    by_hand = (np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)) / images["scale"] - images["mean"]) / images["std"]
    assert np.abs(shown.numpy() - by_hand).max() <= 1.01 / 255 / 0.4, "one grey level of rounding"


# The card --------------------------------------------------------------------------------------------------------------


def code_blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippets_of_the_card_run_and_agree(exported: Exported, weights: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines each; the first two name the class that the network has for the picture."""
    from scalesearch.training.pictures import as_inputs, read_pictures

    blocks = code_blocks(exported.folder)
    assert len(blocks) == 3 and all(len([line for line in block.splitlines() if line]) <= 10 for block in blocks)
    monkeypatch.chdir(exported.folder)
    picture = exported.folder.parent / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 31, 3), dtype=np.uint8)).save(picture)
    with torch.no_grad():
        logits = weights.build().eval()(as_inputs(read_pictures([picture], weights.view, 16).pixels, weights))[0]
    printed = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block.replace('"picture.png"', repr(str(picture))), {})
        printed.append(out.getvalue().strip())
    assert [text.rpartition(" ")[0] for text in printed[:2]] == [NAMES[int(logits.argmax())]] * 2
    assert float(printed[0].split()[-1]) == pytest.approx(float(logits.softmax(0).max()), abs=0.01)
    assert float(printed[1].split()[-1]) == pytest.approx(float(logits.max()), abs=0.02)


def test_the_card_is_what_the_hub_reads(exported: Exported) -> None:
    text = (exported.folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification" and "model-index" not in front
    for part in (f"{cost_of(TINY).macs:,}", f"{cost_of(TINY).params:,}", "dog | wolf", "0.1, 0.2, 0.3", TINY.id, str(exported.digest),
                 "## Accuracy\n\nNot on record.", "## Lineage\n\nNot on record."):
        assert part in text
    for row in exported.rows:
        assert row.format == "card" or f"| `{row.file}` | {FORMATS[row.format].meaning} | {row.difference_text} |" in text


def test_a_card_without_names_or_normalisation_says_so(tmp_path: Path) -> None:
    found = export_model(weights_of(TINY, normalisation=None, class_names=None), tmp_path, ["safetensors", "card"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "not on record" in text and "Names of the classes are not on record" in text and not code_blocks(tmp_path)
    assert len(found.files) == 2
    with pytest.raises(ConfigError, match="formats=preprocessing: .*mean and deviation of its images are not on record"):
        export_model(weights_of(TINY, normalisation=None), tmp_path / "other", ["preprocessing"])
    assert not (tmp_path / "other").exists()


# What is left out and what is refused ----------------------------------------------------------------------------------


def test_an_architecture_alone_gets_what_needs_no_weights(tmp_path: Path) -> None:
    found = export_model(TINY, tmp_path)
    assert [path.name for path in found.files] == ["architecture.yaml", "architecture.json", "timm.json"] and found.digest is None
    assert {row.note for row in found.rows if not row.file} == {"needs weights: write weights=RUN or FILE"}
    with pytest.raises(ConfigError, match="formats=onnx: needs weights"):
        export_model(TINY, tmp_path, ["onnx"])


def test_a_network_that_timm_cannot_express_leaves_timm_out(tmp_path: Path) -> None:
    network = TINY.replace(stages=(Stage("mbconv", 3, 8, 2, expansion=2, skip="pool"),))
    assert export_model(network, tmp_path / "a").rows[-1].format == "card"
    notes = {row.format: row.note for row in export_model(network, tmp_path / "a").rows if not row.file}
    assert "timm cannot express it: it has no skip through pooling" in notes["timm"]
    with pytest.raises(ConfigError, match="formats=timm: .*no skip through pooling"):
        export_model(network, tmp_path / "b", "timm")


@pytest.mark.parametrize("name, package", [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("timm", "timm")])
def test_a_package_that_is_missing_is_one_line(weights: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                               package: str) -> None:
    """Where it is asked for; of all formats it is left out with the same line."""
    monkeypatch.setitem(sys.modules, package, None)
    line = f"needs {package}: pip install 'scalesearch[{name}]'"
    with pytest.raises(ConfigError, match=re.escape(f"formats={name}: {line}")):
        export_model(weights, tmp_path, [name])
    assert not list(tmp_path.iterdir())
    if name == "timm":
        assert {row.format: row.note for row in export_model(TINY, tmp_path).rows}["timm"] == line


def test_unknown_formats_are_refused(weights: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'onx'; did you mean 'onnx'"):
        export_model(weights, tmp_path, ["yaml", "onx"])
    with pytest.raises(ConfigError, match="name some of"):
        export_model(weights, tmp_path, [])


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    broken = weights_of(TINY)
    broken.state["classifier.bias"][0] = float("nan")
    with pytest.raises(ArchitectureError, match="logits are not finite"):
        export_model(broken, tmp_path, ["yaml"])


# A format whose check fails --------------------------------------------------------------------------------------------


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("change, message", [
    (lambda state: state["classifier.weight"].add_(0.01), r"digest \w{12} after reading"),
    (lambda state: state["classifier.bias"].zero_().add_(torch.tensor(float("nan"))), "digest"),
], ids=["another number", "nan"])
def test_a_file_that_reads_as_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any,
                                                         message: str) -> None:
    """The earlier export stays as it was, to the byte."""
    first = export_model(weights_of(TINY), tmp_path, ["yaml", "safetensors"])
    before = files(tmp_path)
    assert set(before) == {"export.json", *(path.name for path in first.files)}

    def damaged(source: Any, path: Path) -> None:
        model = source.weights.build()
        change(model.state_dict())
        save_weights(model, path, export_formats.metadata(source))

    monkeypatch.setitem(export_formats.FORMATS, "safetensors", FORMATS["safetensors"]._replace(write=damaged))
    with pytest.raises(RunError, match=message):
        export_model(weights_of(TINY, seed=1), tmp_path)
    assert files(tmp_path) == before
    with pytest.raises(RunError):
        export_model(weights_of(TINY), tmp_path / "new", ["safetensors"])
    assert not (tmp_path / "new").exists()


def test_logits_that_are_off_by_more_than_the_tolerance_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest logit 1e-3 is refused, 1e-5 is not; and a file that takes one image only is refused."""
    def reader(factor: float) -> Any:
        return lambda source, path: lambda images: source.model(images) * (1 + factor)

    for factor, fine in ((1e-5, True), (1e-3, False)):
        monkeypatch.setitem(export_formats.FORMATS, "yaml", FORMATS["yaml"]._replace(read=reader(factor)))
        if fine:
            assert 0 < (export_model(weights_of(TINY), tmp_path, ["yaml"]).rows[0].difference or 0)
        else:
            with pytest.raises(RunError, match="formats=yaml: logits of architecture.yaml differ by .*nothing was written"):
                export_model(weights_of(TINY), tmp_path, ["yaml"])
    monkeypatch.setitem(export_formats.FORMATS, "yaml", FORMATS["yaml"]._replace(
        read=lambda source, path: lambda images: source.model(images)[:1]))
    with pytest.raises(RunError, match=r"gives logits of shape \[2, 5\]"):
        export_model(weights_of(TINY), tmp_path, ["yaml"])


def test_a_network_that_blows_up_is_compared_by_what_rounding_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single precision against double, of the network itself; twice that passes with a note, ten times is an error."""
    weights = weights_of(TINY)
    weights.state["bn2.bias"].fill_(1e5)  # the images are a small part of the features, and the classifier takes the large part away
    weights.state["classifier.bias"].copy_(-1e5 * weights.state["classifier.weight"].double().sum(1))
    source = export_formats.Source(weights)
    with torch.no_grad():
        exact = weights.build().eval().double()(source.images.double())
    assert source.rounding >= float((exact - source.model(source.images)).abs().max()) > 1e-4 * float(source.logits.abs().max())
    for factor, fine in ((1.5, True), (10.0, False)):
        monkeypatch.setitem(export_formats.FORMATS, "yaml", FORMATS["yaml"]._replace(
            read=lambda source, path, factor=factor: lambda images: source.model(images) + factor * source.rounding))
        if fine:
            row = export_model(weights, tmp_path, ["yaml"]).rows[0]
            assert row.file and "no more than rounding" in row.note
        else:
            with pytest.raises(RunError, match="logits of architecture.yaml differ by"):
                export_model(weights, tmp_path, ["yaml"])


# The folder ------------------------------------------------------------------------------------------------------------


def test_an_export_leaves_torchs_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    export_model(weights_of(TINY), tmp_path, ["timm"])
    assert torch.equal(torch.randn(2), expected)


def test_a_file_that_only_export_json_names_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    export_model(weights_of(TINY), tmp_path / "out", ["yaml"])
    content = json.loads((tmp_path / "out" / "export.json").read_text())
    content["rows"].append({**content["rows"][0], "file": "../mine"})
    (tmp_path / "out" / "export.json").write_text(json.dumps(content))
    export_model(weights_of(TINY, seed=1), tmp_path / "out", ["json"])
    assert (tmp_path / "mine").is_file() and set(files(tmp_path / "out")) == {"export.json", "architecture.json"}


def test_again_gives_the_same_files(tmp_path: Path) -> None:
    formats = ["yaml", "json", "preprocessing", "safetensors", "card"]
    export_model(weights_of(TINY), tmp_path, formats)
    before, metadata = files(tmp_path), read_metadata(tmp_path / "model.safetensors")
    digest = export_model(weights_of(TINY), tmp_path, formats).digest
    assert {**files(tmp_path), "model.safetensors": b""} == {**before, "model.safetensors": b""}  # whose metadata have no order
    assert read_metadata(tmp_path / "model.safetensors") == metadata and load_pretrained(tmp_path / "model.safetensors").digest == digest


def test_formats_of_the_same_weights_add_up_and_of_others_give_way(tmp_path: Path) -> None:
    export_model(weights_of(TINY), tmp_path, ["yaml"])
    export_model(weights_of(TINY), tmp_path, ["safetensors"])
    rows = {row["format"]: row["file"] for row in (read_export(tmp_path) or {})["rows"]}
    assert rows == {"yaml": "architecture.yaml", "safetensors": "model.safetensors"}
    assert set(files(tmp_path)) == {"export.json", *rows.values()}
    export_model(weights_of(TINY, seed=1), tmp_path, ["json"])
    assert set(files(tmp_path)) == {"export.json", "architecture.json"}
    assert [row["format"] for row in (read_export(tmp_path) or {})["rows"]] == ["json"]


def test_an_interrupted_move_is_made_good_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a killed export left aside is cleared."""
    formats, moved = ["yaml", "json", "safetensors"], []
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path and Path(target).name != "export.json":
            moved.append(target)
            if len(moved) == 2:
                raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="cannot be written .No space left on device"):
        export_model(weights_of(TINY), tmp_path, formats)
    assert set(files(tmp_path)) == {"export.json", "architecture.yaml"}
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / ".export").mkdir()
    (tmp_path / ".export" / "model.onnx").write_text("half")
    found = export_model(weights_of(TINY), tmp_path, formats)
    assert set(files(tmp_path)) == {"export.json", *(path.name for path in found.files)} and len(found.files) == 3


def test_a_description_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export_formats.FORMATS, "json", FORMATS["json"]._replace(
        write=lambda source, path: path.write_text(TINY.replace(classes=6).to_json())))
    with pytest.raises(RunError, match="architecture.json: describes network"):
        export_model(weights_of(TINY), tmp_path, ["json"])


def test_what_no_export_wrote_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="has a README.md that no export wrote; name another folder"):
        export_model(weights_of(TINY), tmp_path)
    assert files(tmp_path) == {"README.md": b"mine"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_model(weights_of(TINY), tmp_path / "file" / "folder", ["yaml"])


def test_metadata_of_the_weights_is_text(exported: Exported) -> None:
    metadata = read_metadata(exported.folder / "model.safetensors")
    assert json.loads(metadata["classes"]) == list(NAMES) and "accuracy" not in metadata
