"""Programs that a test needs and that are not on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    """Skip the test, or fail in CI, which installs what is needed."""
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)
