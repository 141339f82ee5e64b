// CSV in and out (RFC 4180).

import { url, word } from "./checks.js";

/**
 * The rows of a text, each with the line on which it begins.
 * @returns rows: [{line, cells}]; problem: what ended them early, or null
 */
export function parse(text) {
  const cell = /("(?:[^"]|"")*"|[^",\r\n]*)(,|\r\n|\n|\r|$)/y;
  const rows = [];
  let cells = [];
  let line = 1;
  let first = 1;
  cell.lastIndex = text.startsWith("\ufeff") ? 1 : 0;
  while (cell.lastIndex < text.length || cells.length) {
    const found = cell.exec(text);
    if (!found)
      return { rows, problem: { line, text: "isn’t CSV: a quote stands where none may, or isn’t closed" } };
    const [whole, raw, end] = found;
    cells.push((raw.startsWith('"') ? raw.slice(1, -1).replaceAll('""', '"') : raw).trim());
    line += whole.match(/\r\n|\n|\r/g)?.length ?? 0;
    if (end !== ",") {
      rows.push({ line: first, cells });
      cells = [];
      first = line;
    }
  }
  return { rows, problem: null };
}

const KEY = "secondary_client_id";
const COLUMNS = [KEY, "webhook"];
const NEARLY =
  /^(client|client_id|id|name|partner|partner_id|partners|secondary_client|secondary_client_ids?)$/i;

/**
 * The partners of a list: with a header, or an id a line.
 * @returns partners: [{line, partner, webhook}]; problems: [{line, text}]
 */
export function partnersOf(text) {
  const { rows, problem } = parse(text);
  const filled = rows.filter(({ cells }) => cells.some(Boolean));
  const problems = problem ? [problem] : [];
  if (!filled.length) return { partners: [], problems };
  const header = headerOf(filled[0]);
  if (header.text) return { partners: [], problems: [{ line: filled[0].line, text: header.text }] };
  const seen = new Map();
  const partners = [];
  for (const { line, cells } of header.given ? filled.slice(1) : filled) {
    const [row, wrong] = checked(line, cells, header.columns, seen);
    if (wrong) problems.push({ line, text: wrong });
    else partners.push(row);
  }
  return { partners, problems: problems.sort((one, other) => one.line - other.line) };
}

function headerOf({ cells }) {
  if (cells.includes(KEY)) {
    const twice = COLUMNS.some((name) => cells.filter((cell) => cell === name).length > 1);
    return twice ? { text: "the header has a column twice" } : { given: true, columns: cells };
  }
  if (NEARLY.test(cells[0])) return { text: `${cells[0]} isn’t a column; ${KEY} is` };
  if (cells.length > 1) return { text: `${KEY} isn’t in the header; the columns are ${COLUMNS.join(", ")}` };
  return { given: false, columns: [KEY] };
}

function checked(line, cells, columns, seen) {
  if (cells.length > columns.length) return [null, `has ${cells.length} cells, of ${columns.length}`];
  const [partner, webhook] = COLUMNS.map((name) => cells[columns.indexOf(name)] ?? "");
  const wrong = word(partner);
  if (wrong) return [null, `${KEY} ${wrong}`];
  if (webhook && url(webhook)) return [null, `webhook ${url(webhook)}`];
  if (seen.has(partner)) return [null, `${partner} is on line ${seen.get(partner)} already`];
  seen.set(partner, line);
  return [{ line, partner, webhook: webhook || null }, null];
}

// What a spreadsheet would take for a formula, from whoever wrote it, gets an apostrophe before it.
const guarded = (value) => (/^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** Partners as a list that `partnersOf` reads. */
export const partnersCsv = (rows) =>
  [COLUMNS, ...rows.map(({ partner, webhook }) => [partner, webhook ?? ""])]
    .map((cells) => `${cells.map(quoted).join(",")}\n`)
    .join("");

const OUTCOME_COLUMNS = ["outcome", KEY, "relay_token", "request_id", "error_code", "attempts"];

/** Outcomes as `plaid-relay bulk` writes them; a relay token is never changed. */
export function outcomesCsv(rows) {
  const lines = rows.map((row) =>
    [
      row.outcome,
      guarded(row.partner),
      row.relayToken ?? "",
      guarded(row.requestId ?? ""),
      guarded(row.errorCode ?? ""),
      String(row.attempts),
    ]
      .map(quoted)
      .join(","),
  );
  return [OUTCOME_COLUMNS.join(","), ...lines, ""].join("\n");
}
