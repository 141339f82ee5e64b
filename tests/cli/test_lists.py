"""Lists of partners, as the command reads them; the console reads the same (browser/test_many.py)."""

import json
import re
from pathlib import Path

import pytest

from plaid_relay_async.cli.messages import UsageError
from plaid_relay_async.cli.rows import creation_form
from plaid_relay_async.cli.sources import InputSource
from plaid_relay_async.cli.survey import InputSurvey

LISTS = json.loads(Path(__file__).parents[1].joinpath("lists.json").read_text("utf-8"))


def read_partners(path, *, allow_odd):
    """Return the partners of a file and no lines, or `None` and the invalid lines."""
    with InputSource(str(path)) as source:
        try:
            rows = source.rows(
                creation_form("assets-1", allow_odd=allow_odd), InputSurvey(allow_odd=allow_odd)
            )
        except UsageError as error:
            return None, sorted({int(line) for line in re.findall(r"list\.csv:(\d+)", str(error.args))})
        return [request.secondary_client_id for request in rows], []


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case["about"])
def test_a_list_is_read_or_rejected_by_line(tmp_path, case):
    """Each list has its partners or its invalid lines; `--allow-odd-ids` accepts odd identifiers."""
    path = tmp_path / "list.csv"
    path.write_text(case["text"], encoding="utf-8", newline="")
    partners, lines = read_partners(path, allow_odd=False)
    assert lines == case.get("lines", [])
    assert "partners" not in case or partners == case["partners"]
    if "accepted" in case:
        assert read_partners(path, allow_odd=True) == (case["accepted"], [])
