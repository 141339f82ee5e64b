// Texts that are shown with colours: code, and JSON as it came.

import { h } from "./dom.js";

// A string without its last quote. One that isn't closed goes to the end of the text: otherwise each quote in it
// would begin another search for the end, and the time would grow with the square of the length.
const begun = (quote) => String.raw`${quote}[^${quote}\\]*(?:\\[^][^${quote}\\]*)*`;
const DOUBLE = `${begun('"')}"?`;
const TEMPLATE = `${begun("`")}\`?`;

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
    ["name", new RegExp(`${begun('"')}"(?=:)`, "y")],
    ["string", new RegExp(DOUBLE, "y")],
    ["keyword", /\b(?:true|false|null)\b/y],
    ["number", /-?\d[\d.eE+-]*/y],
  ],
};
RULES.bulk = RULES.python;

/** A text as nodes, what has a meaning in its language in a span. */
export function coloured(language, text) {
  const nodes = [];
  let plain = 0;
  for (let at = 0; at < text.length;) {
    const found = wordAt(language, text, at);
    if (!found) {
      at += 1;
      continue;
    }
    if (plain < at) nodes.push(text.slice(plain, at));
    nodes.push(h("span", { class: `c-${found[0]}` }, found[1]));
    plain = at += found[1].length;
  }
  nodes.push(text.slice(plain));
  return nodes;
}

function wordAt(language, text, at) {
  for (const [kind, rule] of RULES[language]) {
    rule.lastIndex = at;
    const found = rule.exec(text);
    if (found) return [kind, found[0]];
  }
  return null;
}

const PIECES = new RegExp(String.raw`${DOUBLE}|[{}[\],:]|[^\s{}[\],:"]+`, "g");

const DEEPEST = 40; // levels that are indented: of a response that nests 100,000, the rest would fill the memory

/** JSON with line breaks; each number and string stays as it came, for money is decimal. */
export function laidOut(json) {
  let depth = 0;
  let empty = false;
  const out = [];
  const line = () => `\n${"  ".repeat(Math.min(depth, DEEPEST))}`;
  for (const [piece] of json.matchAll(PIECES)) {
    if (piece === "}" || piece === "]") {
      depth -= 1;
      out.push(empty ? piece : line() + piece);
    } else if (piece === ",") {
      out.push(piece, line());
    } else if (piece === ":") {
      out.push(": ");
    } else {
      if (empty) out.push(line());
      out.push(piece);
    }
    empty = piece === "{" || piece === "[";
    if (empty) depth += 1;
  }
  return out.join("");
}

/** The same with tokens hidden. */
export const withoutTokens = (json) =>
  json.replace(
    /("(?:relay_token|asset_report_token|access_token|public_token)"\s*:\s*")(?:\\.|[^"\\])*/g,
    "$1••••••••",
  );

/** A count of bytes for people. */
export function sizeOf(bytes) {
  return bytes < 1000
    ? `${bytes} bytes`
    : bytes < 1e6
      ? `${(bytes / 1000).toFixed(1)} kB`
      : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const secondsOf = (seconds) =>
  seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
