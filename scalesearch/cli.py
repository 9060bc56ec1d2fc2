"""The command line: a table of commands, and settings composed from conf/ and `key=value` words.

    words → experiment and group choices → hydra composes conf/<command>.yaml → settings laid over it
          → from_mapping types them by the command's dataclass → run → show, or one JSON object

What a user types never passes through hydra's override grammar or OmegaConf's interpolation: group
choices are checked against a closed list first, and other values travel as tokens that become the
text as typed after composition. A command is a row here, a file conf/<command>.yaml and a module.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import yaml

from scalesearch import stopping
from scalesearch.config import conf_folder, flatten, from_mapping
from scalesearch.errors import ConfigError, ScalesearchError, unknown
from scalesearch.manual import EXPERIMENT, Group, Manual, help_of, help_of_all, preset_names, read_manual


class Command(NamedTuple):
    """`study` is a module with the settings dataclass, `run(settings, screen)` and `show(result, screen)`."""

    study: str
    settings: str
    summary: str


COMMANDS = {
    "nas": Command("scalesearch.studies.nas", "NasSettings", "search a network for a budget of multiply-adds"),
    "grid": Command("scalesearch.studies.grid", "GridSettings", "find the scaling coefficients alpha, beta, gamma by training"),
    "sweep": Command("scalesearch.studies.sweep", "SweepSettings", "does compound scaling beat one dimension at equal cost? by training"),
    "scale": Command("scalesearch.studies.scale", "ScaleSettings", "scale a network by phi or to a budget"),
    "family": Command("scalesearch.studies.family", "FamilySettings", "from a budget to a family: nas, grid, scale, report"),
    "audit": Command("scalesearch.studies.audit", "AuditSettings", "is the proxy fit to rank? train a few networks at it and longer"),
    "calibrate": Command("scalesearch.studies.calibrate", "CalibrateSettings", "fit the reward's exponent to your images"),
    "data": Command("scalesearch.studies.data", "LookSettings", "look at images before training: classes, splits, sizes, pictures"),
    "train": Command("scalesearch.studies.train", "TrainSettings", "train one network on images"),
    "predict": Command("scalesearch.studies.predict", "PredictSettings", "say what pictures show, by trained weights"),
    "explain": Command("scalesearch.studies.explain", "ExplainSettings", "show where in pictures networks see a class"),
    "export": Command("scalesearch.studies.export", "ExportSettings", "write a trained network for timm, ONNX, torch.export and others"),
    "cost": Command("scalesearch.studies.cost", "CostSettings", "count multiply-adds, parameters and activations"),
    "report": Command("scalesearch.studies.report", "ReportSettings", "write the page, tables and figures of finished runs"),
}
OTHERS = {"completion SHELL": "print completion for bash, zsh or fish: eval \"$(scalesearch completion bash)\""}

# Packages that only an extra installs → the extra.
EXTRAS = {"timm": "timm", "ray": "ray", "submitit": "slurm", "optuna_dashboard": "dashboard",
          "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}

_TOKEN = re.compile(r"⟦scalesearch:(\d+)⟧")
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code is 0, 2 for a mistake of the user, 130 when interrupted, 143 at SIGTERM."""
    words = sys.argv[1:] if words is None else list(words)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no Greek letters gets a substitute, not a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    stopping.handle_sigterm()
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except ScalesearchError as error:
        return _refuse(" ".join(str(error).split("\n")), error)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _refuse(f"this needs the package {error.name}; install it with: pip install 'scalesearch[{extra}]'", error)
    except KeyboardInterrupt as error:
        _refuse("interrupted; what was finished is kept, the same command continues from there", error)
        return 130
    except stopping.Terminated as error:
        _refuse("asked to stop; what was finished is kept, the same command continues from there", error)
        return stopping.EXIT_CODE
    except BrokenPipeError:
        # The reader (head, say) has gone; nothing is left to be said to it, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def dispatch(words: Sequence[str]) -> int:
    """The command's name decides; everything after it is the command's."""
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("--help", "-h", "help"):
        commands = [(command, row.summary) for command, row in COMMANDS.items()]
        print(help_of(rest[0]) if rest and rest[0] in COMMANDS else help_of_all(commands, OTHERS.items()))
    elif name == "--version":
        from scalesearch import __version__

        print(f"scalesearch {__version__}")
    elif name in ("completion", "--complete"):
        from scalesearch import completion

        for line in [completion.script(rest)] if name == "completion" else completion.candidates(rest, COMMANDS):
            print(line)
    elif name not in COMMANDS:
        hint = "write python -m scalesearch COMMAND key=value ...: " if "=" in name or name.startswith("-") else ""
        raise ConfigError(hint + unknown("command", name, [*COMMANDS, "completion"]))
    elif "--help" in rest or "-h" in rest:
        print(help_of(name))
    else:
        run_command(name, rest)
    return 0


def run_command(name: str, words: Sequence[str]) -> None:
    """Compose the settings, run the study, show its result."""
    line = parse(words, read_manual(name))
    config = compose(name, line.pairs)
    if line.show_config:
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
        return
    from scalesearch.screen import Screen, to_json

    study = import_module(COMMANDS[name].study)
    settings = from_mapping(getattr(study, COMMANDS[name].settings), config)
    screen = Screen(getattr(settings, "format", "text"))
    if screen.format == "text":
        study.show(study.run(settings, screen), screen)
        return
    with _stdout_kept_clean():
        result = study.run(settings, screen)
    print(to_json(result))


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Whatever libraries and worker processes print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True, slots=True)
class Line:
    """A parsed command line: (key, text as typed) in order, and whether only the configuration is wanted."""

    pairs: tuple[tuple[str, str], ...]
    show_config: bool = False


def parse(words: Sequence[str], manual: Manual) -> Line:
    """Split each word at its first `=`; anything else is refused with the word that was meant."""
    pairs: list[tuple[str, str]] = []
    show_config = False
    rest = iter(words)
    for word in rest:
        if word in ("--cfg", "-c", "--cfg=job"):
            shown = "job" if word == "--cfg=job" else next(rest, "nothing")
            if shown != "job":
                raise ConfigError(f"--cfg {shown}: write --cfg job, which prints the composed configuration")
            show_config = True
        elif "=" not in word or word.startswith("-"):
            raise ConfigError(_not_a_pair(word, next(rest, ""), manual))
        else:
            key, _, value = word.partition("=")
            pairs.append((key, value))
    return Line(tuple(pairs), show_config)


def _not_a_pair(word: str, following: str, manual: Manual) -> str:
    """What was probably meant by `--target-flops 400M`, `trials` or `efficientnet_b0`."""
    key, equals, value = word.lstrip("-").partition("=")
    key = key.replace("-", "_")
    if word.startswith("-"):
        value = value if equals else following
        meant = f"{key}={value or 'VALUE'}" if key in manual.keys else f"KEY=VALUE ({manual.command} --help lists the keys)"
        return f"{word}: there are no flags; write {meant}"
    if key in manual.keys:
        return f"{word}: a setting needs a value; write {key}=VALUE"
    networks = [k for k in ("architecture", "base") if k in manual.keys and word in preset_names()]
    likely = [*networks, *(s.key for s in manual.settings), "KEY"][0]
    return f"{word}: settings are written key=value; write {likely}={word}, or see {manual.command} --help"


def compose(command: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The configuration of a command: primary file, groups, experiment, then the user's settings.

    Values of the user are text as typed (`null` is None); typing them is the dataclass's business.
    ConfigError for a key, an option or an experiment that is not there.
    """
    manual = read_manual(command)
    names = {group.name: group for group in manual.groups}
    chosen = {key: value for key, value in pairs if key in names or key == EXPERIMENT}
    settings = {key: value for key, value in pairs if key not in chosen}
    _check_choices(chosen, manual)
    for key in settings:
        _check_top(key, manual)
    return _hydra(manual, chosen, settings)


def _check_choices(chosen: Mapping[str, str], manual: Manual) -> None:
    for key, choice in chosen.items():
        group = manual.group(key)
        if choice == "null":
            continue
        if group is not None:
            group.check(choice)
        elif choice not in (experiments := [name for name, _ in manual.experiments]):
            if not experiments:
                raise ConfigError(f"{EXPERIMENT}={choice}: {manual.command} has no experiments")
            raise ConfigError(unknown(f"{EXPERIMENT} of {manual.command}", choice, experiments))


def _check_top(key: str, manual: Manual) -> None:
    """Refuse a key that no option could make right, with the nearest dotted one."""
    top = key.partition(".")[0]
    tops = {known.partition(".")[0] for known in manual.keys}
    if _KEY.fullmatch(key) and top in tops:
        return
    dotted = sorted({s.key for g in manual.groups for name in g.files for s in g.option(name).settings
                     if s.key.endswith(f".{key}")})
    if dotted:
        raise ConfigError(f"no setting '{key}' of {manual.command}; did you mean {' or '.join(dotted)}?")
    raise ConfigError(unknown(f"setting of {manual.command}", key, manual.keys))


def _hydra(manual: Manual, chosen: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, Any]:
    """Compose by hydra, lay the settings over the result, resolve it, put the typed text in."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tokens = [f"⟦scalesearch:{i}⟧" for i in range(len(settings))]
    try:
        with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
            composed = compose(manual.command, overrides=list(_overrides(manual, chosen)))
        OmegaConf.set_struct(composed, False)
        for group in manual.groups:
            _choose(composed, group, chosen.get(group.name))
        for (key, text), token in zip(settings.items(), tokens, strict=True):
            _check_nested(key, text, composed, manual, chosen)
            OmegaConf.update(composed, key, token, force_add=True)
        config = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{conf_folder()}: {' '.join(str(error).split())}") from error
    filled: dict[str, Any] = _fill(config, list(settings.values()))
    return filled


def _overrides(manual: Manual, chosen: Mapping[str, str]) -> Iterator[str]:
    """Choices that are files, in hydra's words; plug-ins and null are laid over the result instead."""
    for group in manual.groups:
        choice = chosen.get(group.name)
        if choice in group.files:
            yield f"{group.name}='{choice}'"
    if chosen.get(EXPERIMENT, "null") != "null":
        yield f"+{EXPERIMENT}/{manual.command}='{chosen[EXPERIMENT]}'"


def _choose(composed: Any, group: Group, choice: str | None) -> None:
    """A plug-in's group holds its name and free settings; a group that is left out is null."""
    if choice not in (None, "null") and choice not in group.files:
        composed[group.name] = {"name": choice}
    elif choice == "null" or group.name not in composed:
        composed[group.name] = None


def _check_nested(key: str, text: str, composed: Any, manual: Manual, chosen: Mapping[str, str]) -> None:
    """Refuse a dotted key that the composed configuration has not, and a value for a whole mapping."""
    from omegaconf import DictConfig, OmegaConf

    top, _, rest = key.partition(".")
    group = manual.group(top)
    value = OmegaConf.select(composed, top, throw_on_missing=False)
    if group is not None and value is None:
        raise ConfigError(f"{key}={text}: no {top} is chosen; write {top}=NAME too ({', '.join([*group.files, *group.plugins])})")
    if group is not None and rest == "name":
        raise ConfigError(f"{key}={text}: write {top}={text}, which brings that {top}'s settings with it")
    if group is not None and value.get("name") in group.plugins:
        return
    plain = OmegaConf.to_container(composed, resolve=False)
    known = [leaf for leaf, _ in flatten(plain if isinstance(plain, dict) else {})]  # type: ignore[arg-type]
    if key in known:
        return
    inside = [leaf for leaf in known if leaf.startswith(f"{key}.")]
    if inside and isinstance(value, DictConfig):
        raise ConfigError(f"{key}={text}: {key} has settings of its own; write one of {', '.join(inside)}")
    siblings = [leaf for leaf in known if leaf.startswith(f"{top}.") and leaf != f"{top}.name"]
    if not siblings:
        raise ConfigError(f"no setting '{key}'; {top} has no settings of its own")
    where = f"setting of {top}={chosen.get(top) or value.get('name', group.default)}" if group else "setting"
    raise ConfigError(unknown(where, key, siblings))


def _fill(value: Any, texts: Sequence[str]) -> Any:
    """Tokens become the text that was typed; a whole value `null` becomes None, `???` is left out."""
    if isinstance(value, dict):
        return {key: _fill(item, texts) for key, item in value.items() if item != "???"}
    if isinstance(value, list):
        return [_fill(item, texts) for item in value]
    if not isinstance(value, str):
        return value
    whole = _TOKEN.fullmatch(value)
    if whole and texts[int(whole[1])] == "null":
        return None
    return _TOKEN.sub(lambda match: texts[int(match[1])], value)


def _refuse(text: str, error: BaseException) -> int:
    if os.environ.get("SCALESEARCH_TRACEBACK") == "1":
        raise error
    print(f"scalesearch: {text}", file=sys.stderr)
    return 2
