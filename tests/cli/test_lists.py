"""Lists of partners, as the command reads them; the console's page reads the same (tests/browser/test_batch_operations.py)."""

import json
import re
from pathlib import Path

import pytest

from plaid_relay_async.cli.messages import UsageError
from plaid_relay_async.cli.rows import InputSource, creation_form
from plaid_relay_async.cli.survey import InputSurvey

LISTS = json.loads(Path(__file__).parents[1].joinpath("lists.json").read_text("utf-8"))


def read(path, *, allow_odd):
    """The partners of a file and no line, or `None` and the lines that are refused."""
    with InputSource(str(path)) as source:
        try:
            rows = source.rows(
                creation_form("assets-1", allow_odd=allow_odd), InputSurvey(allow_odd=allow_odd)
            )
        except UsageError as error:
            return None, sorted({int(line) for line in re.findall(r"list\.csv:(\d+)", str(error.args))})
        return [request.secondary_client_id for request in rows], []


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case["about"])
def test_a_list_is_read_or_refused_by_line(tmp_path, case):
    """Each list has its verdict: the partners, or the lines to correct; `--allow-odd-ids` accepts odd ones."""
    path = tmp_path / "list.csv"
    path.write_text(case["text"], encoding="utf-8", newline="")
    partners, lines = read(path, allow_odd=False)
    assert lines == case.get("lines", [])
    assert "partners" not in case or partners == case["partners"]
    if "accepted" in case:
        assert read(path, allow_odd=True) == (case["accepted"], [])
