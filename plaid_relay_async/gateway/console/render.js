// Formats text for display: highlighted code, indented JSON, sizes and durations.

import { h } from "./dom.js";
import { TOKEN_FIELDS } from "./http.js";

// A string without its closing quote. An unclosed string extends to the end of the text: otherwise each quote in it
// would start another search for the end, and the time would grow with the square of the length.
const opened = (quote) => String.raw`${quote}[^${quote}\\]*(?:\\[^][^${quote}\\]*)*`;
const DOUBLE = `${opened('"')}"?`;
const TEMPLATE = `${opened("`")}\`?`;

const RULES = {
  python: [
    ["comment", /#.*/y],
    ["string", new RegExp(`f?${DOUBLE}`, "y")],
    ["keyword", /\b(?:import|from|async|await|def|with|as|for|in|match|case|None|True|False|return)\b/y],
    ["number", /\b\d[\w.]*/y],
  ],
  curl: [
    ["comment", /#.*/y],
    ["string", new RegExp(`'[^']*'?|${DOUBLE}`, "y")],
    ["keyword", /\b(?:curl|umask)\b|--[\w-]+/y],
    ["name", /\$\{?\w+/y],
  ],
  typescript: [
    ["comment", /\/\/.*/y],
    ["string", new RegExp(`${DOUBLE}|${TEMPLATE}`, "y")],
    ["keyword", /\b(?:import|from|const|await|as|if|throw|new|true|false)\b/y],
    ["number", /\b\d[\w.]*/y],
  ],
  json: [
    ["name", new RegExp(`${opened('"')}"(?=:)`, "y")],
    ["string", new RegExp(DOUBLE, "y")],
    ["keyword", /\b(?:true|false|null)\b/y],
    ["number", /-?\d[\d.eE+-]*/y],
  ],
};
RULES.bulk = RULES.python;

/** Return a text as nodes, with a span around each token that is highlighted. */
export function highlight(language, text) {
  const nodes = [];
  let plain = 0;
  for (let at = 0; at < text.length;) {
    const match = matchAt(language, text, at);
    if (!match) {
      at += 1;
      continue;
    }
    if (plain < at) nodes.push(text.slice(plain, at));
    nodes.push(h("span", { class: `c-${match[0]}` }, match[1]));
    plain = at += match[1].length;
  }
  nodes.push(text.slice(plain));
  return nodes;
}

function matchAt(language, text, at) {
  for (const [kind, rule] of RULES[language]) {
    rule.lastIndex = at;
    const match = rule.exec(text);
    if (match) return [kind, match[0]];
  }
  return null;
}

const JSON_TOKENS = new RegExp(String.raw`${DOUBLE}|[{}[\],:]|[^\s{}[\],:"]+`, "g");

const MAX_DEPTH = 40; // levels that are indented; the indentation of 100,000 levels would fill the memory

/** Indent JSON. Each number and string stays as it was sent, because amounts of money are decimals. */
export function indentJson(json) {
  let depth = 0;
  let isEmpty = false;
  const output = [];
  const newLine = () => `\n${"  ".repeat(Math.min(depth, MAX_DEPTH))}`;
  for (const [token] of json.matchAll(JSON_TOKENS)) {
    if (token === "}" || token === "]") {
      depth -= 1;
      output.push(isEmpty ? token : newLine() + token);
    } else if (token === ",") {
      output.push(token, newLine());
    } else if (token === ":") {
      output.push(": ");
    } else {
      if (isEmpty) output.push(newLine());
      output.push(token);
    }
    isEmpty = token === "{" || token === "[";
    if (isEmpty) depth += 1;
  }
  return output.join("");
}

const TOKENS = new RegExp(String.raw`("(?:${TOKEN_FIELDS.join("|")})"\s*:\s*")(?:\\.|[^"\\])*`, "g");

/** Return JSON with its tokens masked. */
export const maskTokens = (json) => json.replace(TOKENS, "$1••••••••");

/** Return a number of bytes in a readable unit. */
export function formatSize(bytes) {
  return bytes < 1000
    ? `${bytes} bytes`
    : bytes < 1e6
      ? `${(bytes / 1000).toFixed(1)} kB`
      : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const formatSeconds = (seconds) =>
  seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
