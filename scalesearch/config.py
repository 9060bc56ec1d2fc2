"""Settings: a plain mapping becomes a frozen dataclass, strictly.

The dataclass is the setting: yaml keys are its field names, its annotations are the types, and an
unknown key is refused with the nearest known one. Text is read by the field's type, so "400M" is
400_000_000 where a whole number is asked for and stays text where text is. Standard library and
yaml only, because `--help` imports it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from scalesearch.errors import ConfigError, unknown

T = TypeVar("T")

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
# How a number is written, for the errors of each type.
_WRITTEN = {int: "a whole number such as 3, 64K or 400M", float: "one such as 2, 0.5 or 1e-3"}
_COUNT = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kKmMgGbBtT]?)", re.IGNORECASE)


def parse_count(text: object, name: str = "value", write: str = "it as 400M, 0.4G, 400e6 or 400000000") -> float:
    """A number with an optional suffix K, M, G (or B) or T, powers of 1000; ConfigError with what to `write` for anything else.

    >>> parse_count("400M"), parse_count("0.4G"), parse_count("400e6")
    (400000000.0, 400000000.0, 400000000.0)
    """
    match = _COUNT.fullmatch(str(text).strip())
    if match is None or isinstance(text, bool):
        raise ConfigError(f"{name}={text}: not a number; write {write}")
    number, suffix = match.groups()
    value = float(number.replace("_", "")) * _SUFFIXES[suffix.upper()]
    if math.isinf(value):
        raise ConfigError(f"{name}={text}: too large to count")
    if not suffix:
        return float(number.replace("_", ""))
    # 0.1G must be 100_000_000 exactly: round away the error of the decimal fraction.
    return round(value, 6)


def format_count(value: float, digits: int = 1) -> str:
    """A count for people: 385,814,752 → '385.8M'.

    >>> format_count(385_814_752), format_count(1_827_141_392, 2), format_count(950)
    ('385.8M', '1.83G', '950')
    """
    for suffix in ("T", "G", "M", "K"):
        if abs(value) >= _SUFFIXES[suffix]:
            return f"{value / _SUFFIXES[suffix]:.{digits}f}{suffix}"
    return f"{value:g}"


def read_yaml(path: Path) -> Any:
    """The content of a yaml file; a file that is no yaml is a ConfigError that names the line."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: not valid yaml ({getattr(error, 'problem', error)})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None


def conf_folder() -> Path:
    """The folder of yaml files: `conf/` in a checkout, `scalesearch/conf/` in an installed wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def from_mapping(cls: type[T], mapping: Mapping[str, Any] | None, where: str = "") -> T:
    """Build the dataclass `cls` from a mapping; `where` is the dotted path shown in errors."""
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or cls.__name__}={mapping!r}: expected key: value settings")
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(unknown("setting", _join(where, str(key)), [_join(where, f) for f in fields]))
    missing = [f.name for f in fields.values() if f.name not in mapping and _required(f)]
    if missing:
        raise ConfigError(f"{_join(where, missing[0])} is required; write {_join(where, missing[0])}=VALUE")
    return cls(**{key: convert(value, hints[key], _join(where, key)) for key, value in mapping.items()})


def convert(value: Any, annotation: Any, where: str) -> Any:
    """`value` as the annotated type; text is read by that type. ConfigError where it does not fit."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return _untyped(value)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is typing.Literal:
        text = str(value)
        if text not in [str(a) for a in arguments]:
            raise ConfigError(f"{where}: " + unknown("choice", text, [str(a) for a in arguments]))
        return next(a for a in arguments if str(a) == text)
    if origin in (tuple, list, Sequence) or (isinstance(origin, type) and origin is not str and issubclass(origin, Sequence)):
        return _convert_sequence(value, origin, arguments, where)
    if origin in (dict, Mapping) or annotation in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        value = _untyped(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value}: expected key: value settings")
        return dict(value)
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):  # type: ignore[arg-type]
            return value
        return from_mapping(annotation, value, where)  # type: ignore[arg-type]
    return _convert_scalar(value, annotation, where)


def to_mapping(value: Any) -> Any:
    """The reverse: dataclasses, tuples and paths as plain mappings, lists and text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): to_mapping(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_mapping(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping as (dotted key, value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, _join(prefix, str(key)))
        else:
            yield _join(prefix, str(key)), value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _untyped(value: Any) -> Any:
    """Text of a setting without a declared type, read as yaml would."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if type(None) in arguments and (value is None or value in ("null", "none", "None", "~", "")):
        return None
    rest = [a for a in arguments if a is not type(None)]
    for annotation in rest[:-1]:
        try:
            return convert(value, annotation, where)
        except ConfigError:
            continue
    return convert(value, rest[-1], where)


def _convert_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in "[(" and text[-1:] in "])":
            text = text[1:-1]
        value = [part.strip() for part in text.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        value = [value]
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ConfigError(f"{where}={_show(value)}: expected {len(arguments)} values, got {len(value)}")
        return tuple(convert(v, a, where) for v, a in zip(value, arguments, strict=True))
    kind = arguments[0] if arguments else Any
    if kind in (int, float):
        items = [_convert_number(v, kind, where, f"{_WRITTEN[kind]}, several with commas between") for v in value]
    else:
        items = [convert(v, kind, f"{where}[{i}]" if isinstance(v, Mapping) else where) for i, v in enumerate(value)]
    return items if origin is list else tuple(items)


def _convert_scalar(value: Any, annotation: Any, where: str) -> Any:
    if annotation is str:
        if isinstance(value, Mapping | list | tuple) or value is None:
            raise ConfigError(f"{where}={_show(value)}: expected text")
        return str(value)
    if annotation is Path:
        if value is None or str(value) == "":
            raise ConfigError(f"{where}={_show('' if value is None else value)}: expected a path")
        return Path(str(value)).expanduser()
    if annotation is bool:
        text = str(value).lower()
        if text not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            raise ConfigError(f"{where}={value}: expected true or false")
        return text in ("true", "yes", "on", "1")
    if annotation in (int, float):
        return _convert_number(value, annotation, where, _WRITTEN[annotation])
    if annotation is type(None):
        raise ConfigError(f"{where}={value}: expected null")
    return value


def _convert_number(value: Any, annotation: type, where: str, write: str) -> int | float:
    if isinstance(value, Mapping | list | tuple) or value is None:
        raise ConfigError(f"{where}={_show(value)}: expected a number")
    number = parse_count(value, where, write)
    if annotation is float:
        return number if isinstance(value, str) else float(value)
    if number != int(number):
        raise ConfigError(f"{where}={value}: expected a whole number")
    return int(number)


def _show(value: Any) -> str:
    return "[" + ", ".join(str(v) for v in value) + "]" if isinstance(value, list | tuple) else str(value)
