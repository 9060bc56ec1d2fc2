"""Settings: text read by the annotated type, strictly, with errors that name the way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesearch.config import conf_folder, convert, flatten, format_count, from_mapping, parse_count, read_yaml, to_mapping
from scalesearch.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    root: Path
    size: int = 32


@dataclass(frozen=True)
class Outer:
    target: int
    window: tuple[float, float] | None = (0.9, 1.0)
    seeds: tuple[int, ...] = (0,)
    inner: Inner | None = None
    free: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["soft", "hard"] = "soft"
    flag: bool = False
    name: str | None = None


@pytest.mark.parametrize("text, value", [
    ("400M", 4e8), ("0.4G", 4e8), ("400e6", 4e8), ("400000000", 4e8), ("0.1G", 1e8), ("2.3B", 2.3e9), ("1_000", 1e3),
    ("5k", 5e3), (".5", 0.5), ("-1.5", -1.5), ("1e-3", 1e-3), (" 7 ", 7.0), (3, 3.0), (0.25, 0.25), ("1.5T", 1.5e12)])
def test_numbers_with_suffixes(text: object, value: float) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", [
    "400X", "400MB", "M", "", "1..2", "0x10", "nan", "inf", "1e999", "1e300T", True, "4 0", "1,000"])
def test_what_is_no_number_is_refused_by_name(text: object) -> None:
    with pytest.raises(ConfigError, match="target_flops="):
        parse_count(text, "target_flops")


@given(st.integers(min_value=0, max_value=10**14), st.sampled_from([("K", 10**3), ("M", 10**6), ("G", 10**9)]))
def test_a_suffix_is_exact_for_whole_multiples(units: int, suffix: tuple[str, int]) -> None:
    letter, factor = suffix
    if units * factor < 2**53:
        assert parse_count(f"{units}{letter}") == units * factor


@given(st.floats(min_value=1e3, max_value=9e14))
def test_formatting_keeps_the_first_digits(value: float) -> None:
    assert parse_count(format_count(value, 3)) == pytest.approx(value, rel=1e-3)


def test_every_type_is_read_from_text() -> None:
    settings = from_mapping(Outer, {
        "target": "400M", "window": "0.8, 1", "seeds": "[0,1,2]", "inner": {"root": "~/x", "size": "64"}, "free": {"a": "1"},
        "kind": "hard", "flag": "true", "name": "a=b, c"})
    assert settings == Outer(400_000_000, (0.8, 1.0), (0, 1, 2), Inner(Path.home() / "x", 64), {"a": "1"}, "hard", True, "a=b, c")


@pytest.mark.parametrize("text", ["null", "none", "", None])
def test_null_clears_what_may_be_absent(text: str | None) -> None:
    settings = from_mapping(Outer, {"target": 1, "window": text, "inner": text, "name": text})
    assert (settings.window, settings.inner, settings.name) == (None, None, None)


@pytest.mark.parametrize("mapping, message", [
    ({}, "target is required; write target=VALUE"),
    ({"target": 1, "wndow": 2}, "no setting 'wndow'; did you mean 'window'?"),
    ({"target": 1, "inner": {"rot": "x"}}, "no setting 'inner.rot'; did you mean 'inner.root'?"),
    ({"target": 1, "inner": {}}, "inner.root is required"),
    ({"target": 1, "inner": "x"}, "inner='x': expected key: value settings"),
    ({"target": "1.5"}, "target=1.5: expected a whole number"),
    ({"target": None}, "target=None: expected a number"),
    ({"target": [1, 2]}, r"target=\[1, 2\]: expected a number"),
    ({"target": 1, "window": "0.9"}, "expected 2 values, got 1"),
    ({"target": 1, "window": "a,b"}, "window=a: not a number; write one such as 2, 0.5 or 1e-3$"),
    ({"target": "4OOM"}, "target=4OOM: not a number; write a whole number such as 3, 64K or 400M$"),
    ({"target": 1, "seeds": "0,x"}, "seeds=x: not a number; write a whole number such as 3, 64K or 400M, several with commas between$"),
    ({"target": 1, "kind": "sfot"}, "kind: no choice 'sfot'; did you mean 'soft'?"),
    ({"target": 1, "flag": "maybe"}, "flag=maybe: expected true or false"),
    ({"target": 1, "inner": {"root": ""}}, "inner.root=: expected a path"),
    ({"target": 1, "inner": {"root": None}}, "inner.root=: expected a path"),
    ({"target": 1, "free": "text"}, "free=text: expected key: value settings"),
    ({"target": 1, "name": ["a"]}, r"name=\[a\]: expected text"),
])
def test_a_mistake_is_one_line_with_the_way_out(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_mapping(Outer, mapping)
    assert "\n" not in str(caught.value)


def test_dataclass_to_mapping_and_back() -> None:
    settings = Outer(5, None, (1, 2), Inner(Path("x")), {"a": [1, {"b": 2}]})
    mapping = to_mapping(settings)
    assert mapping["inner"] == {"root": "x", "size": 32} and mapping["seeds"] == [1, 2]
    assert from_mapping(Outer, mapping) == settings


@given(st.lists(st.integers(), min_size=1))
def test_a_list_reads_the_same_with_and_without_brackets(values: list[int]) -> None:
    small = [v % 10**9 for v in values]
    text = ",".join(map(str, small))
    assert convert(text, tuple[int, ...], "x") == convert(f"[{text}]", tuple[int, ...], "x") == tuple(small)


def test_flatten_joins_keys_by_dots() -> None:
    assert dict(flatten({"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [1]})) == {"a.b": 1, "a.c.d": None, "e": {}, "f": [1]}


def test_a_broken_yaml_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(ConfigError, match=r"x\.yaml line \d+: not valid yaml"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "missing.yaml")


def test_conf_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (conf_folder() / "nas.yaml").is_file()


def test_settings_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Outer(1).target = 2  # type: ignore[misc]
