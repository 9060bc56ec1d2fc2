"""The command line: values arrive as typed, mistakes get one line, stdout carries the result only.

Most tests run a toy command in a conf folder of its own, through the real hydra composition.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalesearch import cli, manual
from scalesearch.config import conf_folder, from_mapping
from scalesearch.errors import DataError, ScalesearchError
from scalesearch.plugins import Table
from scalesearch.screen import Screen, to_json

ROOT = Path(__file__).resolve().parents[1]

# Every command line that the documentation quotes, as words: (command, settings).
QUOTED = [
    ("cost", ["architecture=efficientnet_b0"]),
    ("cost", ["architecture=path/to/file.yaml"]),
    ("cost", ["architecture=timm:resnet50"]),
    ("scale", ["architecture=efficientnet_b0", "phi=1"]),
    ("scale", ["architecture=efficientnet_b0", "phi=0..7"]),
    ("scale", ["target_flops=1G"]),
    ("scale", ["targets=100M,200M"]),
    ("nas", ["target_flops=400M"]),
    ("nas", ["target_flops=0.4G"]),
    ("nas", ["target_flops=400e6"]),
    ("nas", ["target_flops=200M", "window=null"]),
    ("nas", ["evaluator=surrogate"]),
    ("nas", ["data=digits", "evaluator=trained"]),
    ("nas", ["sampler=random"]),
    ("nas", ["sampler=nsga2"]),
    ("nas", ["sampler=gp"]),
    ("nas", ["data=folder", "data.root=~/my images"]),
    ("nas", ["data=parquet", "data.root=../shared/data/cifar10"]),
    ("nas", ["data=parquet", "data.root=../shared/data/cifar10", "experiment=smoke"]),
    ("nas", ["experiment=smoke", "data.root=../shared/data/cifar10", "data=parquet"]),
    ("grid", ["phi=1"]),
    ("grid", ["phi=1", "constraint=nominal"]),
    ("grid", ["base=results/nas-1a2b3c4d"]),
]

TOY = {
    "toy.yaml": """\
        # A toy: nothing is searched.
        #
        # example: toy text=x
        defaults:
          - space: small                # what to look at
          - data: null                  # the images
          - _self_

        text: plain                     # any text
        copy: ${text}-x                 # text with a tail
        path: null                      # a file
        count: 3                        # how many, a whole
                                        # number
        window: [0.9, 1.0]              # two fractions
        fast: false                     # skip the slow part
        format: text                    # text | json: how the result is written
        """,
    "strict.yaml": """\
        # A toy that needs a value.
        defaults:
          - _self_

        needed: ???                     # has no default
        """,
    "space/small.yaml": "# A few.\nname: small\nwidth: 1.0   # how wide\ndepth: 2   # how deep\n",
    "space/large.yaml": "# Many.\nname: large\nwidth: 2.0   # how wide\n",
    "data/parquet.yaml": "# Images in parquet files.\nname: parquet\nroot: ???   # the folder\n",
    "data/digits.yaml": "# Handwritten digits.\nname: digits\n",
    "experiment/toy/smoke.yaml": """\
        # @package _global_
        # A run of seconds.
        defaults:
          - override /data: parquet
          - override /space: large
        count: 1
        space:
          width: 0.5
        """,
}


@dataclass(frozen=True)
class ToySettings:
    text: str = ""
    copy: str = ""
    path: Path | None = None
    count: int = 1
    window: tuple[float, float] | None = None
    fast: bool = False
    format: Literal["text", "json"] = "text"
    space: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None


def run(settings: ToySettings, screen: Screen) -> dict[str, Any]:
    if settings.text.startswith("raise "):
        raise {"user": DataError("data.root=/x: no such\nfolder"), "bug": ZeroDivisionError("a bug"), "stop": KeyboardInterrupt(),
               "extra": ModuleNotFoundError("No module named 'timm'", name="timm"), "pipe": BrokenPipeError(),
               "foreign": ModuleNotFoundError("No module named 'x'", name="x")}[settings.text[6:]]
    screen.status("working")
    with screen.progress(settings.count, "toy") as progress:
        for _ in range(settings.count):
            progress.advance(note="best 0.5")
    print("a library talks")
    if settings.text == "child":
        subprocess.run([sys.executable, "-c", "print('a child talks')"], check=True)
    screen.print("a line in between")
    return {"text": settings.text, "count": settings.count, "path": settings.path, "window": settings.window, "nan": float("nan")}


def show(result: dict[str, Any], screen: Screen) -> None:
    screen.table(["what", "value"], [["text", result["text"]], ["count", result["count"]]], title="toy")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf folder with the toy command; the real one is out of sight."""
    for name, text in TOY.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    for module in (cli, manual):
        monkeypatch.setattr(module, "conf_folder", lambda: tmp_path / "conf")
    for name in ("toy", "strict"):
        monkeypatch.setitem(cli.COMMANDS, name, cli.Command(__name__, "ToySettings", f"the {name} command"))
    monkeypatch.setitem(manual.TABLES, "space", f"{__name__}:SPACES")
    return tmp_path / "conf"


SPACES = Table("space", {"plugged": "json:dumps"})


def compose(*words: str, command: str = "toy") -> dict[str, Any]:
    line = cli.parse(words, manual.read_manual(command))
    return cli.compose(command, line.pairs)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a mistake gets."""
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("scalesearch: ") and err.count("\n") == 1 and "Traceback" not in err
    return err.removeprefix("scalesearch: ").rstrip("\n")


# ------------------------------------------------------------------ values as typed

VERBATIM = [
    "100M,200M", "0..7", "timm:resnet50", "timm:vit_base.augreg(x)", "a=b=c", "=", "~/images", "~",
    "/data/my images/x (1).png", "C:\\Users\\me\\images\\", "..\\x", "[0.9,1.0]", "{a: 1}", "{", "]", "(1,2)", "'quoted'",
    '"double"', "it's", "a\\'b", "\\", "\\\\'", "$HOME", "${text}", "\\${text}", "${oc.env:HOME}", "${", "$", "@x",
    "#no comment", "a # b", "a: b", "*", "&x", "!tag", "%", "- x", "true", "1e5", "0x1f", "007", "3.10", "café φ=1 图像",
    "⟦scalesearch:0⟧", "\t tab ", " leading", "line\nbreak", "", "???", "a;b|c", "choice(1,2)", "range(1,5)", "glob(*)",
    "null,null", "Null", "None", "\udce9",
]


@pytest.mark.parametrize("values", [VERBATIM[i:i + 4] for i in range(0, len(VERBATIM), 4)])
def test_a_value_arrives_as_typed(toy: Path, values: list[str]) -> None:
    keys = ["text", "path", "fast", "window"][:len(values)]
    config = compose(*[f"{key}={value}" for key, value in zip(keys, values, strict=True)])
    assert [config[key] for key in keys] == list(values)
    assert config["copy"] == f"{values[0]}-x"
    assert config["count"] == 3


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=20), min_size=3, max_size=3), st.permutations(range(5)))
def test_any_text_in_any_order_arrives(toy: Path, texts: list[str], order: list[int]) -> None:
    texts = [text + "'" if text == "null" else text for text in texts]
    words = [f"text={texts[0]}", f"path={texts[1]}", f"data.root={texts[2]}", "data=parquet", "space=large"]
    config = compose(*[words[i] for i in order])
    assert (config["text"], config["path"], config["data"]) == (texts[0], texts[1], {"name": "parquet", "root": texts[2]})
    assert config["space"] == {"name": "large", "width": 2.0}


def test_types_come_from_the_dataclass(toy: Path) -> None:
    config = compose("text=1e5", "count=4K", "window=0.5,1", "path=~/x", "fast=true")
    typed = from_mapping(ToySettings, config)
    space = {"name": "small", "width": 1.0, "depth": 2}
    assert typed == ToySettings("1e5", "1e5-x", Path.home() / "x", 4000, (0.5, 1.0), True, "text", space)


def test_null_clears_a_setting_and_a_group(toy: Path) -> None:
    config = compose("window=null", "data=parquet", "data=null", "space=null")
    assert (config["window"], config["data"], config["space"]) == (None, None, None)


def test_of_a_repeated_key_the_last_counts(toy: Path) -> None:
    config = compose("count=1", "space=large", "count=2", "space=small")
    assert config["count"] == "2" and config["space"]["name"] == "small"


def test_an_experiment_sets_groups_and_settings_and_the_line_wins(toy: Path) -> None:
    config = compose("experiment=smoke", "data.root=/x")
    assert config["count"] == 1 and config["data"] == {"name": "parquet", "root": "/x"}
    assert config["space"] == {"name": "large", "width": 0.5}
    assert "experiment" not in config
    config = compose("count=7", "space=small", "experiment=smoke", "data=digits", "space.width=3")
    assert config["count"] == "7" and config["data"] == {"name": "digits"}
    assert config["space"] == {"name": "small", "width": "3", "depth": 2}


def test_a_setting_without_default_is_asked_for(toy: Path) -> None:
    assert compose(command="strict") == {}
    assert compose("needed=???", command="strict") == {"needed": "???"}
    assert compose("data=parquet")["data"] == {"name": "parquet"}


def test_a_plug_in_is_an_option_with_free_settings(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("space", {"plugged": "json:dumps"})
    table.register("mine", dict)
    monkeypatch.setattr(sys.modules[__name__], "SPACES", table)
    assert compose("space=plugged", "space.a.b=1,2")["space"] == {"name": "plugged", "a": {"b": "1,2"}}
    assert compose("space.x=${text}", "space=mine", "experiment=smoke")["space"] == {"name": "mine", "x": "${text}"}
    assert "mine" in manual.help_of("toy")


def test_a_setting_named_like_a_folder_of_conf_is_a_setting(toy: Path) -> None:
    (toy / "text").mkdir()
    (toy / "text" / "plain.yaml").write_text("a: 1\n")
    assert compose("text=plain")["text"] == "plain"


# ------------------------------------------------------------------ mistakes

@pytest.mark.parametrize("words, message", [
    (["ans"], "no command 'ans'; did you mean 'nas'?"),
    (["count=3"], "no command 'count=3'"),
    (["--verbose"], "no command '--verbose'"),
    (["toy", "cuont=3"], "no setting of toy 'cuont'; did you mean 'count'?"),
    (["toy", "spce=small"], "no setting of toy 'spce'; did you mean 'space'?"),
    (["toy", "root=/x"], "no setting 'root' of toy; did you mean data.root?"),
    (["toy", "=3"], "no setting of toy ''"),
    (["toy", "+count=3"], "no setting of toy '+count'; did you mean 'count'?"),
    (["toy", "~data="], "no setting of toy '~data'; did you mean 'data'?"),
    (["toy", "count.x=3"], "no setting 'count.x'; count has no settings of its own"),
    (["toy", "space.widht=3"], "no setting of space=small 'space.widht'; did you mean 'space.width'?"),
    (["toy", "space=large", "space.depth=3"], "no setting of space=large 'space.depth'; did you mean 'space.width'?"),
    (["toy", "space.name=large"], "space.name=large: write space=large"),
    (["toy", "space=smal"], "no space 'smal'; did you mean 'small'? (large, plugged, small)"),
    (["toy", "space=small,large"], "no space 'small,large'"),
    (["toy", "space=../toy"], "no space '../toy'"),
    (["toy", "space="], "no space ''"),
    (["toy", "data=parqet"], "no data 'parqet'; did you mean 'parquet'? (digits, null, parquet)"),
    (["toy", "data.root=/x"], "data.root=/x: no data is chosen; write data=NAME too (digits, parquet)"),
    (["toy", "data=digits", "data.root=/x"], "no setting 'data.root'; data has no settings of its own"),
    (["toy", "experiment=smok"], "no experiment of toy 'smok'; did you mean 'smoke'? (smoke)"),
    (["strict", "experiment=x"], "experiment=x: strict has no experiments"),
    (["toy", "count"], "count: a setting needs a value; write count=VALUE"),
    (["toy", "hello"], "hello: settings are written key=value; write text=hello"),
    (["toy", "--count", "3"], "--count: there are no flags; write count=3"),
    (["toy", "--count=3"], "--count=3: there are no flags; write count=3"),
    (["toy", "--nonsense"], "--nonsense: there are no flags; write KEY=VALUE (toy --help lists the keys)"),
    (["toy", "--cfg", "hydra"], "--cfg hydra: write --cfg job"),
    (["toy", "--cfg"], "--cfg nothing: write --cfg job"),
    (["toy", "count=many"], "count=many: not a number"),
    (["toy", "window=1"], "window=[1]: expected 2 values, got 1"),
    (["toy", "format=xml"], "format: no choice 'xml'; choose one of (json, text)"),
    (["toy", "text=raise user"], "data.root=/x: no such folder"),
    (["toy", "text=raise extra"], "this needs the package timm; install it with: pip install 'scalesearch[timm]'"),
    (["completion", "tcsh"], "no completion for shell 'tcsh'"),
    (["completion"], "completion: name the shell"),
])
def test_a_mistake_gets_one_line(toy: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refusal(capsys, *words)


def test_a_preset_without_its_key_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write architecture=efficientnet_b4" in refusal(capsys, "scale", "efficientnet_b4")


def test_an_interrupt_says_how_to_go_on(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "text=raise stop"]) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("kind, error", [("bug", ZeroDivisionError), ("foreign", ModuleNotFoundError)])
def test_a_bug_keeps_its_traceback(toy: Path, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        cli.main(["toy", f"text=raise {kind}"])


def test_the_traceback_of_a_mistake_on_request(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALESEARCH_TRACEBACK", "1")
    with pytest.raises(ScalesearchError):
        cli.main(["toy", "text=raise user"])


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m scalesearch nas --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


def test_a_broken_yaml_file_is_named(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "space" / "broken.yaml").write_text("name: [\n")
    assert "broken.yaml" in refusal(capsys, "toy", "space=broken")


# ------------------------------------------------------------------ what is written where

def test_text_shows_on_stdout_and_waits_on_stderr(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "text=[bold]φ[/bold]", "count=2"]) == 0
    out, err = capsys.readouterr()
    assert "[bold]φ[/bold]" in out and "working" not in out
    assert "working" in err and "toy: 2/2" in err and "best 0.5" in err


def test_json_is_one_object_on_stdout(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "format=json", "text=φ\n,", "path=/x", "count=2"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    expected = {"text": "φ\n,", "count": 2, "path": "/x", "window": [0.9, 1.0], "nan": None}
    assert json.loads(out, parse_constant=pytest.fail) == expected
    assert "a library talks" in err and "a line in between" in err and "toy: 2/2" in err


def test_json_is_alone_on_stdout_even_if_child_processes_print(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "format=json", "text=child"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["text"] == "child"
    assert "a child talks" in err


def test_json_takes_arrays_and_dataclasses() -> None:
    numpy = importlib.import_module("numpy")
    value = {"a": numpy.arange(3), "b": numpy.float32("nan"), "c": ToySettings(path=Path("x")), "d": (1, float("inf")), 5: None}
    plain = json.loads(to_json(value))  # type: ignore[arg-type]
    assert (plain["a"], plain["b"], plain["d"], plain["5"]) == ([0, 1, 2], None, [1, None], None)
    assert plain["c"]["path"] == "x"


def test_the_composed_configuration_is_yaml_that_composes_again(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["toy", "--cfg", "job", "text=${x}: 'y'", "data=parquet", "data.root=/a b"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == compose("text=${x}: 'y'", "data=parquet", "data.root=/a b")
    assert from_mapping(ToySettings, printed).text == "${x}: 'y'"


def test_no_folder_appears_and_none_is_left(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert cli.main(["toy", "format=json"]) == 0
    assert list(folder.iterdir()) == [] and Path.cwd() == folder


def test_a_terminal_without_greek_gets_a_substitute() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "from scalesearch import cli, screen; cli.main(['--version']); screen.Screen().print('φ=1')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert "\\u03c6=1" in done.stdout


def test_a_bar_on_a_terminal_names_rate_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with Screen().progress(4, "nas") as progress:
        progress.set(2)
        progress.advance(2, note="best 0.71")
    assert "4/4" in sys.stderr.getvalue() and "best 0.71" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_long_wait_without_a_terminal_is_told_now_and_then(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalesearch.screen.PLAIN_SECONDS", 0.0)
    with Screen().progress(None, "drawing") as progress:
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("drawing: 1 in 0 s")


# ------------------------------------------------------------------ help

def test_help_lists_every_setting_group_option_and_experiment(toy: Path) -> None:
    text = manual.help_of("toy")
    for part in ("A toy: nothing is searched.", "count=3", "how many, a whole number", "window=[0.9, 1.0]", "space=small",
                 "space.width=1.0", "space.depth=2", "large", "data=null", "data.root=???", "smoke", "A run of seconds.",
                 "plugged"):
        assert part in text
    assert max(map(len, text.splitlines())) <= manual.WIDTH


def test_help_of_all_names_commands_and_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["-h"]) == 0
    out = capsys.readouterr().out
    for name, row in cli.COMMANDS.items():
        assert f"  {name}" in out and row.summary in out
    assert max(map(len, out.splitlines())) <= manual.WIDTH


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("scalesearch 0.")


@pytest.mark.parametrize("words", [["--help"], ["nas", "--help"]])
def test_help_answers_within_a_second(words: list[str]) -> None:
    def seconds() -> float:
        # Time of the processor, not of the clock: the tests of others may run beside this one.
        before = os.times()
        subprocess.run([sys.executable, "-m", "scalesearch", *words], check=True, capture_output=True, cwd=ROOT)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 1.0


# ------------------------------------------------------------------ the real commands

def yaml_files() -> list[Path]:
    """Files whose lines are settings: networks are values, and experiments repeat keys."""
    paths = sorted(conf_folder().rglob("*.yaml"))
    return [path for path in paths if path.relative_to(conf_folder()).parts[0] not in ("architecture", "experiment")]


@pytest.mark.parametrize("path", yaml_files(), ids=lambda p: str(p.relative_to(conf_folder())))
def test_every_setting_has_its_meaning(path: Path) -> None:
    found, groups = manual._read(path)
    silent = [s.key for s in [*found, *groups] if not s.meaning and s.key != "name"]
    assert not silent, f"{path}: write `# meaning` behind {', '.join(silent)}"
    assert manual._header(path), f"{path}: open it with a comment that says what it is for"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_primary_file_has_the_fields_of_the_settings(command: str) -> None:
    row = cli.COMMANDS[command]
    fields = {f.name: f for f in dataclasses.fields(getattr(importlib.import_module(row.study), row.settings))}
    page = manual.read_manual(command)
    assert {s.key for s in page.settings} | {g.name for g in page.groups} == set(fields)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_defaults_in_the_file_are_those_of_the_settings(command: str) -> None:
    row = cli.COMMANDS[command]
    cls = getattr(importlib.import_module(row.study), row.settings)
    groups = {g.name for g in manual.read_manual(command).groups}
    config = {key: value for key, value in compose(command=command).items() if key not in groups}
    required = {f.name: "x" for f in dataclasses.fields(cls)
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    filled, stock = from_mapping(cls, {**required, **config}), from_mapping(cls, required)
    for name in config:
        assert getattr(filled, name) == getattr(stock, name), f"{command}: {name}"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_of_every_group_composes(command: str) -> None:
    page = manual.read_manual(command)
    for group in page.groups:
        for option in [*group.files, *group.plugins]:
            chosen = compose(f"{group.name}={option}", command=command)[group.name]
            # A recipe is all settings; every other group names a row of a table.
            assert isinstance(chosen, dict) and (group.name == "recipe" or chosen["name"]), f"{group.name}={option}"
    for name, _ in page.experiments:
        compose(f"experiment={name}", command=command)


@pytest.mark.parametrize("group", ["evaluator", "sampler"])  # nothing is chosen in the first by default
def test_a_plug_in_is_chosen_by_its_name(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalesearch.evaluators import EVALUATORS
    from scalesearch.samplers import SAMPLERS

    monkeypatch.setitem({"evaluator": EVALUATORS, "sampler": SAMPLERS}[group]._rows, "mine", lambda: None)
    assert compose(f"{group}=mine", command="nas")[group] == {"name": "mine"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_each_command_fits(command: str) -> None:
    text = manual.help_of(command)
    assert max(map(len, text.splitlines())) <= manual.WIDTH
    assert "python -m scalesearch" in text


@pytest.mark.parametrize("command, words", QUOTED, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_quoted_command_lines_compose_as_typed(command: str, words: list[str]) -> None:
    config = compose(*words, command=command)
    row = cli.COMMANDS[command]
    from_mapping(getattr(importlib.import_module(row.study), row.settings), config)
    for word in words:
        key, _, value = word.partition("=")
        if key == "experiment":
            continue
        found: Any = config
        for part in key.split("."):
            found = found[part]
        assert (found["name"] if isinstance(found, dict) else found) == (None if value == "null" else value)


def test_cost_from_words_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "format=json", "architecture=efficientnet_b0"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["macs"] == 385_814_752 and result["params"] == 5_288_548 and result["resolution"] == 224
