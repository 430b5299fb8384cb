"""Run the fuzz targets on seeds and truncated seeds, to keep them working."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz import INPUTS
from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("target", INPUTS)
def test_seeds(target: str) -> None:
    assert INPUTS.keys() == TARGETS.keys()
    for seed in seeds(target):
        for end in range(0, len(seed) + 1, 1 + len(seed) // 50):
            TARGETS[target](seed[:end])
        TARGETS[target](seed)
