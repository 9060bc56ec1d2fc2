"""README: its Python runs, its commands compose, its prose names files and commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalesearch.cli import COMMANDS, parse
from scalesearch.manual import read_manual

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", fenced("python"), ids=lambda text: text.strip().splitlines()[-1][:40])
def test_python_runs_and_prints_what_its_comments_say(snippet: str, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(snippet, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)\s+# (\S+)$", snippet, re.MULTILINE)
    for said, printed in zip(promised, done.stdout.split(), strict=False):
        assert printed.startswith(said)


@pytest.mark.parametrize("line", [line.split("#")[0].strip() for block in fenced("bash") for line in block.splitlines()
                                  if line.startswith("python -m scalesearch")])
def test_commands_are_ones_that_exist(line: str) -> None:
    command, *words = line.split()[3:]
    assert command in COMMANDS
    manual = read_manual(command)
    for key, _ in parse(words, manual).pairs:
        assert key == "experiment" or key.partition(".")[0] in {known.partition(".")[0] for known in manual.keys}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:results|experiments|conf)/[\w./-]+\.(?:md|txt|csv|json|yaml))`", README))))
def test_files_it_names_exist(path: str) -> None:
    assert (ROOT / path).is_file()


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"\b[A-Z]+_ROW\b|TODO|XXX", README)
