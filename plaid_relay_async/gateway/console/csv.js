// Reads and writes CSV (RFC 4180).

import { problemWithIdentifier, problemWithUrl } from "./checks.js";
import { commonShape, describeShape, isHeading, normalize, oddityOf, shapeOf } from "./identifiers.js";

const CELLS = {
  ",": /("(?:[^"]|"")*"|(?!")[^,\r\n]*)(,|\r\n|\n|\r|$)/y,
  ";": /("(?:[^"]|"")*"|(?!")[^;\r\n]*)(;|\r\n|\n|\r|$)/y,
  "|": /("(?:[^"]|"")*"|(?!")[^|\r\n]*)(\||\r\n|\n|\r|$)/y,
  "\t": /("(?:[^"]|"")*"|(?!")[^\t\r\n]*)(\t|\r\n|\n|\r|$)/y,
};

/**
 * Parse the rows of a text, without blank ones.
 * @returns rows: [{line, cells}], with the line on which each row begins; problem: why parsing ended early, or null
 */
export function parse(text, delimiter = ",", maxRows = Infinity) {
  const cell = new RegExp(CELLS[delimiter]);
  const rows = [];
  let cells = [];
  let line = 1;
  let firstLine = 1;
  cell.lastIndex = text.match(/^\ufeff*/)[0].length;
  while ((cell.lastIndex < text.length || cells.length) && rows.length < maxRows) {
    const match = cell.exec(text);
    if (!match)
      return { rows, problem: { line, text: "isn’t valid CSV: a quote is misplaced or not closed" } };
    const [cellText, raw, end] = match;
    cells.push((raw.startsWith('"') ? raw.slice(1, -1).replaceAll('""', '"') : raw).trim());
    line += cellText.match(/\r\n|\n|\r/g)?.length ?? 0;
    if (end !== delimiter) {
      if (cells.some(Boolean)) rows.push({ line: firstLine, cells });
      cells = [];
      firstLine = line;
    }
  }
  return { rows, problem: null };
}

const KEY = "secondary_client_id";
const COLUMNS = [KEY, "webhook"];
const BLANK = /^(?:[\ufeff \t,;|]*(?:\r\n|\n|\r))*/;
const SEP = /^\ufeff*"?sep=(.?)[,;|\t]*"? *(?:\r\n|\n|\r|$)/i;

/**
 * Parse a list of partners: CSV with a header, or an identifier on each line. The rules are those of the command.
 * @param allowOdd whether to accept identifiers that probably are something else
 * @returns partners: [{line, partner, webhook}]; problems: [{line, text, odd}]; unknown: the ignored columns
 */
export function parsePartners(text, allowOdd = false) {
  const blank = BLANK.exec(text)[0];
  const sep = SEP.exec(text.slice(blank.length));
  const skippedLines = blank.match(/\r\n|\n|\r/g)?.length ?? 0;
  if (sep && !(sep[1] in CELLS)) return failure(skippedLines + 1, "sep= isn’t followed by a delimiter");
  const body = text.slice(blank.length + (sep?.[0].length ?? 0));
  const { rows, problem } = parse(body, sep?.[1] ?? detectDelimiter(body));
  for (const item of problem ? [...rows, problem] : rows) item.line += skippedLines + (sep ? 1 : 0);
  if (!rows.length) return { partners: [], problems: problem ? [problem] : [], unknown: [] };
  const header = parseHeader(rows[0].cells);
  if (header.text) return failure(rows[0].line, header.text);
  const list = { partners: [], problems: problem ? [problem] : [], unknown: header.unknown };
  for (const { line, cells } of header.present ? rows.slice(1) : rows) {
    const [row, error, odd] = parseRow(line, cells, header.columns, allowOdd);
    if (error) list.problems.push({ line, text: error, odd });
    else list.partners.push(row);
  }
  if (!allowOdd) rejectOddRows(list, header.present ? null : rows[0].line);
  rejectDuplicates(list);
  list.problems.sort((first, second) => first.line - second.line);
  return list;
}

const failure = (line, text) => ({ partners: [], problems: [{ line, text }], unknown: [] });

/** Return the delimiter with which the first row has the identifier's column, or else the most columns. */
function detectDelimiter(text) {
  const ranks = Object.keys(CELLS).map((delimiter) => {
    const cells = parse(text, delimiter, 1).rows[0]?.cells ?? [];
    return [delimiter, (cells.map(normalize).includes(normalize(KEY)) ? 1e9 : 0) + cells.length];
  });
  return ranks.reduce((best, rank) => (rank[1] > best[1] ? rank : best))[0];
}

function parseHeader(cells) {
  const columns = cells.map((cell) => COLUMNS.find((name) => normalize(name) === normalize(cell)) ?? null);
  const missing = COLUMNS.filter((name) => !columns.includes(name));
  const unknown = [...new Set(cells.filter((cell, index) => cell && !columns[index]))];
  const repeated = COLUMNS.find((name) => columns.indexOf(name) !== columns.lastIndexOf(name));
  if (repeated) return { text: `${repeated} occurs twice in the header` };
  for (const cell of unknown) {
    const suggestion = missing.find((name) => similarity(normalize(cell), normalize(name)) >= 0.8);
    if (suggestion) return { text: `unknown column ${cell}; did you mean ${suggestion}?` };
  }
  if (columns.includes(KEY)) {
    const token = unknown.find((cell) => /^reporttokens?$/.test(normalize(cell)));
    return token
      ? { text: `${token} can’t be a column here: all partners get the report whose token is above` }
      : { present: true, columns, unknown };
  }
  if (cells.length > 1 || isHeading(cells[0])) {
    return { text: `${KEY} isn’t in the header; the columns are ${COLUMNS.join(", ")}. Rename the column` };
  }
  return { present: false, columns: [KEY], unknown: [] };
}

/** Return how similar two names are, from 0 to 1, by Ratcliff and Obershelp as in Python's difflib. */
function similarity(first, second) {
  return (2 * countMatching(first, second)) / (first.length + second.length);
}

function countMatching(first, second) {
  let [from, at, length] = [0, 0, 0];
  for (let start = 0; start < first.length; start += 1)
    while (second.includes(first.slice(start, start + length + 1)) && start + length < first.length) {
      length += 1;
      [from, at] = [start, second.indexOf(first.slice(start, start + length))];
    }
  if (!length) return 0;
  const before = countMatching(first.slice(0, from), second.slice(0, at));
  return length + before + countMatching(first.slice(from + length), second.slice(at + length));
}

function parseRow(line, cells, columns, allowOdd) {
  if (cells.slice(columns.length).some(Boolean))
    return [null, `has ${cells.length} cells; expected at most ${columns.length}`];
  const [partner, webhook] = COLUMNS.map((name) => unescapeFormula(cells[columns.indexOf(name)] ?? ""));
  const problem = problemWithIdentifier(partner);
  if (problem) return [null, `${KEY} ${problem}`];
  if (webhook && problemWithUrl(webhook)) return [null, `webhook ${problemWithUrl(webhook)}`];
  const oddity = allowOdd ? null : oddityOf(partner);
  return oddity ? [null, `${KEY} ${oddity}`, true] : [{ line, partner, webhook: webhook || null }];
}

/** Turn rows whose shape differs from nine in ten rows into problems, and a first row that may be a header. */
function rejectOddRows(list, firstLineWithoutHeader) {
  const first = list.partners[0];
  if (first?.line === firstLineWithoutHeader && list.partners.length > 1) {
    const others = list.partners.slice(1).map(({ partner }) => shapeOf(partner));
    if (shapeOf(first.partner) > commonShape(others)) {
      list.partners.shift();
      list.problems.push({
        line: first.line,
        text: "uses other characters than the rows below it: it may be a header",
        odd: true,
      });
    }
  }
  const common = commonShape(list.partners.map(({ partner }) => shapeOf(partner)));
  rejectRows(list, ({ partner }) =>
    shapeOf(partner) > common ? `nine in ten rows are ${describeShape(common)}, and this one isn’t` : null,
  );
}

function rejectDuplicates(list) {
  const lines = new Map();
  rejectRows(
    list,
    ({ line, partner }) => {
      if (lines.has(partner)) return `${partner} is already on line ${lines.get(partner)}`;
      lines.set(partner, line);
      return null;
    },
    false,
  );
}

function rejectRows(list, problemOf, odd = true) {
  list.partners = list.partners.filter((row) => {
    const text = problemOf(row);
    if (text) list.problems.push({ line: row.line, text, odd });
    return !text;
  });
}

// A cell that a spreadsheet would execute as a formula is escaped by an apostrophe, as in
// plaid_relay_async/cli/formulas.py.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
export const escapeFormula = (text) => (FORMULA.test(text) ? `'${text}` : text);
export const unescapeFormula = (cell) => (cell.startsWith("'") && FORMULA.test(cell) ? cell.slice(1) : cell);
const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** Return partners as CSV that `parsePartners` reads. */
export const partnersCsv = (rows) =>
  [COLUMNS, ...rows.map(({ partner, webhook }) => [partner, webhook ?? ""])]
    .map((cells) => `${cells.map(quote).join(",")}\n`)
    .join("");

const OUTCOME_COLUMNS = ["outcome", KEY, "relay_token", "request_id", "error_code", "attempts"];

/** Return outcomes as CSV in the form of `plaid-relay bulk`. Relay tokens are never escaped. */
export function outcomesCsv(rows) {
  const lines = rows.map((row) =>
    [
      row.outcome,
      escapeFormula(row.partner),
      row.relayToken ?? "",
      escapeFormula(row.requestId ?? ""),
      escapeFormula(row.errorCode ?? ""),
      String(row.attempts),
    ]
      .map(quote)
      .join(","),
  );
  return [OUTCOME_COLUMNS.join(","), ...lines, ""].join("\n");
}
