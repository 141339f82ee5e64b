"""The detection of libraries that patch aiohttp's `ClientSession`, such as aioresponses.

`RelayClient` uses the connection pool without the session by default (`direct=True`), so such a patch doesn't
intercept its requests.
"""

import aiohttp
import aiohttp.client


class PatchedSessionWarning(UserWarning):
    """A request of a client arrived at the simulator, although aiohttp's `ClientSession` is patched."""


PATCHED_SESSION = (
    "aiohttp.ClientSession is patched, for example by aioresponses, but a request reached the simulator: by "
    "default, RelayClient doesn't send its requests through ClientSession. For error responses, use "
    "@pytest.mark.plaid(faults=[...]). If the patch is for other servers, ignore this warning"
)


def is_session_patched() -> bool:
    """Return whether the function that sends the requests of a `ClientSession` isn't aiohttp's own."""
    # A wrapper of wrapt calls aiohttp's function and has its `__code__`. A mock has other code, or none.
    code = getattr(aiohttp.ClientSession._request, "__code__", None)  # noqa: SLF001  # what such libraries patch
    return code is None or code.co_filename != aiohttp.client.__file__
