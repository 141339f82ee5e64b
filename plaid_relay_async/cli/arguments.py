"""Arguments whose value can be read from a file or from standard input, and the confirmation prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import StderrWriter, UsageError, sanitize

ProxyOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="URL of an HTTP proxy, in place of HTTPS_PROXY. @FILE reads it from a file, for a URL with a "
        "password. An empty value means no proxy."
    ),
]


def read_value(value: str, name: str) -> str:
    """Return the value, or for `@FILE` the content of the file without surrounding whitespace.

    Args:
        value: the argument.
        name: the name of the option, for messages.

    Raises:
        UsageError: the file can't be read.
    """
    return _read_text(value[1:], name) if value.startswith("@") else value


def read_token(value: str, name: str) -> str:
    """Return a token: the value itself, for `@FILE` the content of the file, or for `-` standard input.

    Args:
        value: the argument.
        name: the name of the option, for messages.

    Raises:
        UsageError: the token can't be read, or looks like an option.
    """
    if value == "-":
        return _read_text(None, name)
    # Arguments for tokens accept a leading hyphen because of `-`, so cyclopts doesn't reject a misplaced
    # option.
    if value.startswith("-"):
        raise UsageError(f"{name}: a token doesn't begin with a hyphen; is this an option?")
    return read_value(value, name)


def _read_text(path: str | None, name: str) -> str:
    try:
        text = sys.stdin.read() if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("it isn't text" if path else "it isn't open")
        raise UsageError(f"{name}: can't be read: {reason}") from None
    return text.removeprefix("\ufeff").strip()


def confirm(question: str, *, yes: bool) -> bool:
    """Ask a question on the terminal, and return whether the answer is yes.

    Args:
        question: the question.
        yes: whether the user has confirmed with `--yes`; then there is no prompt.

    Raises:
        UsageError: standard input isn't a terminal.
    """
    if yes:
        return True
    # A pipe must not confirm: it may contain data for another command that happens to begin with "y".
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("standard input is not a terminal: pass --yes to confirm")
    StderrWriter().write(f"{sanitize(question)} [y/N] ")
    StderrWriter().flush()
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    print_message("nothing was changed")
    return False
