"""The log of calls with each fault of the matrix."""

from __future__ import annotations

import pytest
from test_log_of_faults import check_log_of_fault
from test_matrix import ROWS

pytestmark = [pytest.mark.may_block, pytest.mark.slow, pytest.mark.timeout(1800)]


async def test_the_log_of_each_fault(size, every_log, tmp_path):
    """The log of each way of calling has the documented fields, no canary, and what happened to each pair."""
    for number, name in enumerate([*ROWS][size(7, 0) :: size(60, 1)]):
        await check_log_of_fault(name, every_log, tmp_path / str(number))
