"""Highlighted text: nothing is lost, and the time is linear in its length."""

from __future__ import annotations

import json

import pytest

LANGUAGES = ("python", "bulk", "curl", "typescript", "json")
MEASURE = """async ([language, piece, tail, count]) => {
  const { highlight, indentJson, maskTokens } = await import("/console/render.js");
  const { tokensIn } = await import("/console/http.js");
  const timed = (count) => {
    const text = piece.repeat(count) + tail;
    let best = Infinity;
    for (let round = 0; round < 3; round += 1) {
      const begun = performance.now();
      if (language) highlight(language, text);
      indentJson(text);
      maskTokens(text);
      tokensIn({ text, json: null });
      best = Math.min(best, performance.now() - begun);
    }
    return best;
  };
  timed(count);
  return [timed(count), timed(100 * count)];
}"""


QUOTES = [(r"\"", ""), (r"\"", "\\"), ("\\'", ""), ("\\`", ""), ("\\", '"')]
# These are not highlighted, because many elements slow down the browser in other ways.
OTHERS = [(r"x\"\"y: ", "\n"), ('"relay_token":  "', ""), ('"relay_token" ', ":"), ("[{", "")]


@pytest.mark.parametrize(
    ("language", "piece", "tail"),
    [
        *((language, *text) for language in LANGUAGES for text in QUOTES),
        *((None, *text) for text in OTHERS),
    ],
)
async def test_the_time_is_linear(module_page, language, piece, tail):
    """A hundred times the text takes less than a thousand times as long, so no search restarts at each quote."""
    once, hundred_times = await module_page.evaluate(MEASURE, [language, piece, tail, 500])
    assert hundred_times < 1_000 * max(once, 1)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        '"',
        '"open',
        "'open",
        "`open",
        '"a\\',
        '"a\\"',
        '"a": "b"',
        '"a:b',
        "x \"a\\\nb\" 'c' `d\n`e",
        'f"{x}" # it\'s',
        "// it's\n/* `",
    ],
)
async def test_highlighting_preserves_the_text(module_page, language, text):
    """The nodes contain the complete text."""
    console = await module_page.evaluate(
        """async ([language, text]) => {
          const { highlight } = await import("/console/render.js");
          return highlight(language, text).map((node) => node.textContent ?? node).join("");
        }""",
        [language, text],
    )
    assert console == text


@pytest.mark.parametrize(
    ("text", "names"),
    [('{"a": "b:c"}', ['"a"']), ('{"a\\"": 1}', ['"a\\""']), ('"a:b', []), ('{"a": "b', ['"a"'])],
)
async def test_names_in_json(module_page, text, names):
    """A name is a complete string before a colon."""
    names_found = await module_page.evaluate(
        """async (text) => {
          const { highlight } = await import("/console/render.js");
          return highlight("json", text).filter((node) => node.className === "c-name").map((n) => n.textContent);
        }""",
        text,
    )
    assert names_found == names


async def test_a_response_of_quotes(console):
    """A response with 50,000 escaped quotes is shown without delay, also where the page truncates it."""
    message = '"' * 50_000
    page = await console.open("owner", report_token="assets-sandbox-canary-1")
    await page.route(
        "**/credit/relay/create",
        lambda route: route.fulfill(
            status=400, content_type="application/json", body=json.dumps({"error_message": message})
        ),
    )
    await console.fill(secondary_client_id="partner")
    assert await console.send_request()
    assert await page.locator("#response pre").inner_text()
