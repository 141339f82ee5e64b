"""A canary secret and canary tokens, which must not appear in any log, error, repr or traceback."""

from __future__ import annotations

import re
import traceback

from plaid_relay_async import Credentials

SECRET = "canary-0f8b7c1d-secret"
REPORT_TOKEN = "assets-sandbox-canary-5a1e"
# What a server says, which errors show, and log records don't.
SERVER_TEXT = "what the server says"
CREDENTIALS = Credentials("owner", SECRET)
CANARY_PATTERN = re.compile(
    r"canary-\w+|assets-sandbox-\S+|credit-relay-sandbox-\S+|(access|public)-sandbox-\S+"
)


def assert_no_canary(text: str, *, allowed: str = "") -> None:
    """Check that a text contains no canary, apart from one that is allowed to appear."""
    match = CANARY_PATTERN.search(text.replace(allowed, "") if allowed else text)
    assert match is None, f"a canary leaked: …{text[max(0, match.start() - 200) : match.end()]}"


def package_frames(error: BaseException) -> str:
    """Return the locals of the package's frames, as a traceback with locals would show them.

    The causes, contexts and grouped exceptions of the error are included.
    """
    lines, pending = [], [error]
    while pending:
        current = pending.pop()
        pending += [e for e in (current.__cause__, current.__context__) if e is not None]
        pending += getattr(current, "exceptions", ())
        for frame, _ in traceback.walk_tb(current.__traceback__):
            if "/plaid_relay_async/" in frame.f_code.co_filename:
                lines += [
                    f"{frame.f_code.co_name}: {name}={value!r}" for name, value in frame.f_locals.items()
                ]
    return "\n".join(lines)


def assert_error_is_clean(error: BaseException) -> None:
    """Check that neither an error's texts and attributes nor its traceback with locals contain a canary."""
    assert_no_canary(f"{error} {error!r} {error.args} {vars(error)}")
    assert_no_canary("".join(traceback.format_exception(error)))
    assert_no_canary(package_frames(error))
