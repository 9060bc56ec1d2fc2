"""Small made-up image folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """make_folder({"train/cat": 4, "train/dog": 4}, side=8) → a root with that many random PNG images in each folder."""

    def make(counts: Mapping[str, int], side: int = 8, root: str = "images") -> Path:
        rng = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / root / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{number:03d}.png")
        return tmp_path / root

    return make
