"""The size of each long proof: a sample by default, all of it with `--endurance`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Size = Callable[[int, int], int]


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Size:
    """A function that takes the sizes of the sample and of the full proof, and returns the one to run."""
    full_size = bool(request.config.getoption("--endurance"))
    return lambda sample, full: full if full_size else sample
