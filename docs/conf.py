"""Configuration of Sphinx. The session `docs` treats warnings as errors."""

from plaid_relay_async import __version__

project = "plaid_relay_async"
copyright = "2026, the plaid_relay_async authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"plaid_relay_async {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Signatures name types of the standard library, aiohttp, pytest and redis-py, whose inventories aren't
# downloaded.
nitpick_ignore_regex = [
    ("py:.*", r"(asyncio|collections|contextlib|datetime|decimal|enum|os|pathlib|ssl|tls|typing|types)\..*"),
    ("py:.*", r"(aiohttp|opentelemetry|pytest|_pytest)\..*"),
    ("py:class", "MeterProvider|Path|Redis|TracerProvider|datetime"),
    # Temporal's, and the protocol of a task queue, which only `TaskQueue` implements.
    ("py:.*", "Client|DataConverter|RPCError|TaskQueueProtocol"),
    # Type variables.
    ("py:class", r"(plaid_relay_async\.[\w.]+\.)?([EPQRSTU]|E_co|OutcomeT|ResultT)"),
]
