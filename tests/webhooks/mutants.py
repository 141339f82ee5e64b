"""List the mutants that no test of webhooks notices: `python mutants.py PATH`, the path of cosmic-ray's session.

Those in `EXPLAINED` aren't listed. The exit status is 1 if there are others, or if an explanation isn't needed.
"""

from __future__ import annotations

import sqlite3
import sys

# A changed line, and why the change has no effect.
EXPLAINED = {
    'if not is_number or not 0 <= cast("float", value) != math.inf:': "no number exceeds infinity",
    "if not TYPE_CHECKING:": "the names are imported at run time, and not used there",
    "if type(issued_at) != int or not 0 <= issued_at <= _MAX_TIME:": "classes are equal only if identical",
}


def changed_line(diff: str) -> str:
    """Return the new line of a diff, or the removed one after "without"."""
    lines = [line for line in diff.splitlines() if line[:1] in {"-", "+"} and line[:3] not in {"---", "+++"}]
    new_lines = [line[1:].strip() for line in lines if line[0] == "+"]
    return " ".join(new_lines) or f"without {lines[-1][1:].strip()}"


def surviving_lines(path: str) -> set[str]:
    """Return the changed line of each mutant that survived."""
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT diff FROM work_results WHERE test_outcome = 'SURVIVED'")
        return {changed_line(diff) for (diff,) in rows}


def main(path: str) -> int:
    """Print the mutants, and return the exit status."""
    lines = surviving_lines(path)
    for line in sorted(lines - EXPLAINED.keys()):
        print(f"no test notices: {line}")  # noqa: T201  # a program that prints
    for line in sorted(EXPLAINED.keys() - lines):
        print(f"no such mutant: {line}")  # noqa: T201  # a program that prints
    return int(lines != EXPLAINED.keys())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
