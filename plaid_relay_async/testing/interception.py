"""The detection of libraries that patch aiohttp's `ClientSession`, such as aioresponses.

`RelayClient` uses the connection pool without the session by default (`direct=True`), so such a patch doesn't
intercept its requests.
"""

import aiohttp
import aiohttp.client


class PatchedSessionWarning(UserWarning):
    """A request of a client arrived at the simulator, although aiohttp's `ClientSession` is patched."""


PATCHED_SESSION = (
    "aiohttp.ClientSession is patched, as aioresponses does it, and a request reached the simulator all the "
    "same: by default, RelayClient doesn't send its requests through ClientSession. Script the responses "
    "with @pytest.mark.plaid(faults=[...]) instead. If the patch is for other servers, ignore this warning"
)


def is_session_patched() -> bool:
    """Return whether another function than aiohttp's own receives the requests of a `ClientSession`."""
    # The wrappers of wrapt, which call aiohttp's function, show its code. A mock has other code, or none.
    code = getattr(aiohttp.ClientSession._request, "__code__", None)  # noqa: SLF001  # what such libraries patch
    return code is None or code.co_filename != aiohttp.client.__file__
