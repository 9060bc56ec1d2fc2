"""What can be set, read from the yaml files themselves: one source for help, completion and checks.

A primary file `conf/<command>.yaml` opens with a comment that is the command's help text; each line
`key: default  # meaning` is a setting, each line of its `defaults:` list a group, whose options are
the files of `conf/<group>/` and the rows of the group's plug-in table. A meaning that opens with
`a | b:` names the choices. No hydra and nothing heavy here, because `--help` and Tab wait for it.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scalesearch.config import conf_folder
from scalesearch.errors import ConfigError, unknown

if TYPE_CHECKING:
    from scalesearch.plugins import Table

# Groups whose options are also rows of a table, so that a plug-in needs no yaml file.
TABLES = {
    "space": "scalesearch.spaces:SPACES",
    "sampler": "scalesearch.samplers:SAMPLERS",
    "evaluator": "scalesearch.evaluators:EVALUATORS",
    "executor": "scalesearch.executors:EXECUTORS",
}
EXPERIMENT = "experiment"
WIDTH = 100

_CHOICES = re.compile(r"(\w+(?: \| \w+)+)(?=[:;,]|$)")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Setting:
    """A dotted key, its default as written in the file, and the comment behind it."""

    key: str
    default: str
    meaning: str

    @property
    def choices(self) -> list[str]:
        """The values that the meaning opens with: `text | json: …`."""
        match = _CHOICES.match(self.meaning)
        return match[1].split(" | ") if match else []


@dataclass(frozen=True, slots=True)
class Option:
    """One file of a group: `conf/space/mbconv.yaml` is option mbconv of group space."""

    name: str
    summary: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A line of the defaults list: settings that are chosen together by one name."""

    name: str
    default: str | None
    meaning: str
    folder: Path

    @property
    def files(self) -> list[str]:
        return _stems(self.folder / self.name)

    @property
    def plugins(self) -> list[str]:
        """Rows of the group's table that have no file here: registered ones and entry points."""
        if self.name not in TABLES:
            return []
        module, _, attribute = TABLES[self.name].partition(":")
        table: Table = getattr(import_module(module), attribute)
        return [name for name in table.names() if name not in self.files]

    def option(self, name: str) -> Option:
        path = self.folder / self.name / f"{name}.yaml"
        settings, _ = _read(path)
        return Option(name, _summary(path), tuple(
            Setting(f"{self.name}.{s.key}", s.default, s.meaning) for s in settings if s.key != "name"))

    def check(self, choice: str) -> None:
        """ConfigError with the nearest name where `choice` is no option."""
        if choice not in self.files and choice not in (plugins := self.plugins):
            raise ConfigError(unknown(self.name, choice, [*self.files, *plugins, *(["null"] if self.default is None else [])]))


@dataclass(frozen=True, slots=True)
class Manual:
    """All that can follow `scalesearch <command>`."""

    command: str
    text: tuple[str, ...]
    settings: tuple[Setting, ...]
    groups: tuple[Group, ...]
    experiments: tuple[tuple[str, str], ...]

    @property
    def keys(self) -> list[str]:
        """What can stand before the first `=`, dotted settings of groups aside."""
        keys = [s.key for s in self.settings] + [g.name for g in self.groups]
        return [*keys, EXPERIMENT] if self.experiments else keys

    def group(self, name: str) -> Group | None:
        return next((g for g in self.groups if g.name == name), None)

    def setting(self, key: str, choices: Iterable[tuple[str, str]] = ()) -> Setting | None:
        """The setting of a dotted key, looked for in the chosen option of its group, then in all."""
        found = next((s for s in self.settings if s.key == key), None)
        group = self.group(key.partition(".")[0])
        if found or group is None:
            return found
        chosen = dict(choices).get(group.name, group.default)
        names = sorted(group.files, key=lambda name: name != chosen)
        return next((s for name in names for s in group.option(name).settings if s.key == key), None)


def read_manual(command: str) -> Manual:
    """Read `conf/<command>.yaml` and the names of what it can pick from."""
    return _read_manual(command, conf_folder())


@functools.cache
def _read_manual(command: str, folder: Path) -> Manual:
    path = folder / f"{command}.yaml"
    settings, groups = _read(path)
    experiments = tuple((name, _summary(folder / EXPERIMENT / command / f"{name}.yaml"))
                        for name in _stems(folder / EXPERIMENT / command))
    return Manual(command, tuple(_header(path)), tuple(settings),
                  tuple(Group(g.key, None if g.default == "null" else g.default, g.meaning, folder) for g in groups), experiments)


def preset_names() -> list[str]:
    """Names that `architecture=` takes besides files and `timm:` models."""
    return _stems(conf_folder() / "architecture")


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _header(path: Path) -> list[str]:
    """The comment block that opens a file, without its marks and hydra's package line."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[2:])
    return lines


def _summary(path: Path) -> str:
    """The first paragraph of the opening comment."""
    return " ".join("\n".join(_header(path)).partition("\n\n")[0].split())


@functools.cache
def _read(path: Path) -> tuple[list[Setting], list[Setting]]:
    """(settings, groups of the defaults list) of a yaml file, each with its default and comment."""
    text = path.read_text(encoding="utf-8")
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid yaml ({' '.join(str(error).split())})") from None
    lines = text.splitlines()
    settings: list[Setting] = []
    groups: list[Setting] = []
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "defaults":
            mappings = [item for item in value.value if isinstance(item, yaml.MappingNode)]
            groups = [setting for item in mappings for setting in _leaves(item, lines)]
        else:
            settings.extend(_leaf(key, value, lines))
    return settings, groups


def _leaves(mapping: yaml.MappingNode, lines: Sequence[str], prefix: str = "") -> Iterator[Setting]:
    for key, value in mapping.value:
        yield from _leaf(key, value, lines, prefix)


def _leaf(key: yaml.Node, value: yaml.Node, lines: Sequence[str], prefix: str = "") -> Iterator[Setting]:
    name = f"{prefix}{key.value}"
    if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
        yield from _leaves(value, lines, f"{name}.")
        return
    start, end = value.start_mark, value.end_mark
    source = [*lines[start.line:end.line], lines[end.line][:end.column]]
    source[0] = source[0][start.column:]
    default = " ".join(part.strip() for part in source)
    yield Setting(name, default or "null", _comment(lines, end.line, lines[end.line][end.column:]))


def _comment(lines: Sequence[str], row: int, rest: str) -> str:
    """The comment behind a value, and the lines of nothing but comment that go on with it."""
    if "#" not in rest:
        return ""
    parts = [rest.partition("#")[2].strip()]
    for line in lines[row + 1:]:
        # Flush left it would be a heading of what follows; far to the right it goes on.
        if not re.match(r"\s{8,}#", line):
            break
        parts.append(line.partition("#")[2].strip())
    return " ".join(parts)


def help_of_all(commands: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]] = ()) -> str:
    """The text of `scalesearch --help`."""
    return "\n".join([
        "scalesearch: search a network for a compute budget, find how to scale it, build the family", "",
        "usage: python -m scalesearch COMMAND [key=value ...]", "",
        "commands:", *_columns([(name, summary) for name, summary in commands]), "",
        "other:", *_columns([*others, ("COMMAND --help", "every setting of a command with its default and meaning"),
                             ("COMMAND --cfg job", "print the composed configuration and stop"),
                             ("--version", "print the version")]), "",
        "examples:",
        "  python -m scalesearch cost architecture=efficientnet_b0",
        "  python -m scalesearch scale architecture=efficientnet_b0 phi=0..7",
        "  python -m scalesearch nas target_flops=400M",
        "  python -m scalesearch grid phi=1",
    ])


def help_of(command: str) -> str:
    """The text of `scalesearch <command> --help`: every setting, group and option."""
    manual = read_manual(command)
    lines = [*manual.text, "", f"usage: python -m scalesearch {command} [key=value ...]", "",
             "settings, with their defaults (in any order; of a repeated key the last one counts):"]
    lines += _table(manual.settings)
    for group in manual.groups:
        lines += ["", f"{group.name}={group.default or 'null'}    {group.meaning}", *_group(group)]
    if manual.experiments:
        lines += ["", f"{EXPERIMENT}=NAME    settings kept under a name; what you write beside it wins",
                  *_columns(manual.experiments)]
    return "\n".join(line.rstrip() for line in lines)


def _group(group: Group) -> Iterator[str]:
    """Options one a line, settings shared by all of them once, others under their option."""
    options = [group.option(name) for name in group.files]
    shared = {s for s in options[0].settings if all(s in o.settings for o in options)} if len(options) > 1 else set()
    for option in options:
        yield from _columns([(option.name, option.summary)])
        yield from _table([s for s in option.settings if s not in shared], indent=6)
    yield from _columns([(name, "(plug-in)") for name in group.plugins])
    if shared:
        yield "  with each of them:"
        yield from _table([s for s in options[0].settings if s in shared], indent=6)


def _table(settings: Iterable[Setting], indent: int = 2) -> list[str]:
    return _columns([(f"{s.key}={s.default}", s.meaning) for s in settings], indent, wide=36)


def _columns(rows: Iterable[tuple[str, str]], indent: int = 2, wide: int = 24) -> list[str]:
    """Two aligned columns within WIDTH; a left text that is too wide has its line alone."""
    lines: list[str] = []
    left = " " * (indent + wide)
    for name, text in rows:
        head = " " * indent + name
        wrapped = textwrap.wrap(text, WIDTH - len(left), break_on_hyphens=False) or [""]
        if len(head) >= len(left) - 1 and text:
            lines += [head, *(left + line for line in wrapped)]
        else:
            lines += [f"{head:<{len(left)}}{wrapped[0]}", *(left + line for line in wrapped[1:])]
    return lines
