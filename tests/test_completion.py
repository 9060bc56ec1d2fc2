"""Completion: the candidates, and what a real bash makes of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalesearch import cli, completion

ROOT = Path(__file__).resolve().parents[1]


def offered(*words: str) -> list[str]:
    return completion.candidates(words, cli.COMMANDS)


@pytest.mark.parametrize("words, expected", [
    (["na"], ["nas"]),
    (["--v"], ["--version"]),
    (["completion", ""], ["bash", "fish", "zsh"]),
    (["cost", "arch"], ["architecture="]),
    (["cost", "architecture=efficientnet_v2_b"], [f"architecture=efficientnet_v2_b{i}" for i in range(4)]),
    (["nas", "format="], ["format=text", "format=json"]),
    (["cost", "table="], ["table=true", "table=false"]),
    (["grid", "constraint=n"], ["constraint=nominal"]),
    (["nas", "space=mb"], ["space=mbconv", "space=mbconv_v2"]),
    (["nas", "space.skel"], ["space.skeleton="]),
    (["nas", "space=mnasnet", "space.skeleton=mnasnet_a"], ["space.skeleton=mnasnet_a1"]),
    (["nas", "data=par"], ["data=parquet"]),
    (["nas", "data=nu"], ["data=null"]),
    (["nas", "data.ro"], []),
    (["nas", "data=parquet", "data.ro"], ["data.root="]),
    (["nas", "sampler=ts"], []),
    (["nas", "experiment=smo"], ["experiment=smoke"]),
    (["nas", "trials=5", "tri"], []),
    (["nas", "--cfg", ""], ["job"]),
    (["nas", "--h"], ["--help"]),
    (["unknown", ""], []),
    (["nas", "nothing="], []),
])
def test_candidates(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_the_first_word_is_a_command() -> None:
    assert set(cli.COMMANDS) | {"completion"} == set(offered(""))
    assert offered() == offered("")


def test_every_key_of_every_command_is_offered() -> None:
    for command in cli.COMMANDS:
        assert {f"{key}=" for key in completion.read_manual(command).keys} <= set(offered(command, ""))


BASH = shutil.which("bash")


def bash_reply(line: str, words: str, function: str, tmp_path: Path, breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """COMPREPLY of a real bash for the line, whose words bash itself has cut at `=`."""
    program = tmp_path / "scalesearch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scalesearch "$@"\n')
    program.chmod(0o755)
    python = tmp_path / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    code = f"""
        cd {ROOT}; PATH={tmp_path}:$PATH
        eval "$(scalesearch completion bash)"
        complete -p python scalesearch >/dev/null || exit 1
        COMP_WORDBREAKS=$1; COMP_LINE=$2; COMP_POINT=${{#COMP_LINE}}
        eval "COMP_WORDS=($3)"; COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        {function}
        (( ${{#COMPREPLY[@]}} )) && printf '%s\\n' "${{COMPREPLY[@]}}"
        true"""
    done = subprocess.run([str(BASH), "-c", code, "bash", breaks, line, words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.skipif(BASH is None, reason="no bash here")
@pytest.mark.parametrize("line, words, expected", [
    ("scalesearch gr", "scalesearch gr", ["grid "]),
    ("scalesearch nas tri", "scalesearch nas tri", ["trials="]),
    ("scalesearch nas format=", "scalesearch nas format =", ["text ", "json "]),
    ("scalesearch nas format=j", "scalesearch nas format = j", ["json "]),
    ("scalesearch cost table=true architecture=resnet5", "scalesearch cost table = true architecture = resnet5", ["resnet50 "]),
    ("scalesearch nas data.root=/tm", "scalesearch nas data.root = /tm", []),
])
def test_bash_completes_the_console_script(tmp_path: Path, line: str, words: str, expected: list[str]) -> None:
    assert bash_reply(line, words, "_scalesearch", tmp_path) == expected


@pytest.mark.skipif(BASH is None, reason="no bash here")
@pytest.mark.parametrize("line, words, expected", [
    ("python -m scalesearch nas format=j", "python -m scalesearch nas format = j", ["json "]),
    ("python -m scalesearch ", "python -m scalesearch ''", [f"{name} " for name in [*cli.COMMANDS, "completion"]]),
    ("python -m json.to", "python -m json.to", []),
    ("python script.py na", "python script.py na", []),
])
def test_bash_completes_the_module_and_leaves_python_alone(tmp_path: Path, line: str, words: str, expected: list[str]) -> None:
    assert bash_reply(line, words, "_scalesearch_python", tmp_path) == expected


@pytest.mark.skipif(BASH is None, reason="no bash here")
def test_bash_that_does_not_cut_at_equals_gets_whole_words(tmp_path: Path) -> None:
    line = "scalesearch nas format=j"
    assert bash_reply(line, line, "_scalesearch", tmp_path, " \t\n") == ["format=json "]


@pytest.mark.parametrize("shell", sorted(completion.SCRIPTS))
def test_a_snippet_serves_script_and_module(shell: str) -> None:
    text = completion.script([shell])
    assert "scalesearch" in text and "python" in text and "--complete" in text


@pytest.mark.parametrize("shell", sorted(completion.SCRIPTS))
def test_a_snippet_parses_in_its_shell(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([program, "-n"], input=completion.script([shell]), text=True, check=True)
