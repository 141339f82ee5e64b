"""A secret and tokens that must show nowhere but where they are asked for."""

from __future__ import annotations

import re
import traceback

from plaid_relay_async import Credentials

SECRET = "canary-0f8b7c1d-secret"
REPORT_TOKEN = "assets-sandbox-canary-5a1e"
CREDENTIALS = Credentials("owner", SECRET)
CANARY_PATTERN = re.compile(
    r"canary-\w+|assets-sandbox-\S+|credit-relay-sandbox-\S+|(access|public)-sandbox-\S+"
)


def assert_no_canary(text: str, *, allowed: str = "") -> None:
    found = CANARY_PATTERN.search(text.replace(allowed, "") if allowed else text)
    assert found is None, f"a canary got out: …{text[max(0, found.start() - 200) : found.end()]}"


def package_frames(error: BaseException) -> str:
    """The package's frames of a rendered traceback, with the repr of every local, through the whole chain."""
    shown, chain = [], [error]
    while chain:
        one = chain.pop()
        chain += [e for e in (one.__cause__, one.__context__) if e is not None]
        chain += getattr(one, "exceptions", ())
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if "/plaid_relay_async/" in frame.f_code.co_filename:
                shown += [
                    f"{frame.f_code.co_name}: {name}={value!r}" for name, value in frame.f_locals.items()
                ]
    return "\n".join(shown)


def assert_error_is_clean(error: BaseException) -> None:
    assert_no_canary(f"{error} {error!r} {error.args} {vars(error)}")
    assert_no_canary("".join(traceback.format_exception(error)))
    assert_no_canary(package_frames(error))
