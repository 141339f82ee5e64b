// CSV in and out (RFC 4180).

import { url, word } from "./checks.js";
import { commonShape, describe, isHeading, normalized, oddityOf, shapeOf } from "./identifiers.js";

const CELLS = {
  ",": /("(?:[^"]|"")*"|(?!")[^,\r\n]*)(,|\r\n|\n|\r|$)/y,
  ";": /("(?:[^"]|"")*"|(?!")[^;\r\n]*)(;|\r\n|\n|\r|$)/y,
  "|": /("(?:[^"]|"")*"|(?!")[^|\r\n]*)(\||\r\n|\n|\r|$)/y,
  "\t": /("(?:[^"]|"")*"|(?!")[^\t\r\n]*)(\t|\r\n|\n|\r|$)/y,
};

/**
 * The rows of a text that aren't blank, each with the line on which it begins.
 * @returns rows: [{line, cells}]; problem: what ended them early, or null
 */
export function parse(text, delimiter = ",", most = Infinity) {
  const cell = new RegExp(CELLS[delimiter]);
  const rows = [];
  let cells = [];
  let line = 1;
  let first = 1;
  cell.lastIndex = text.match(/^\ufeff*/)[0].length;
  while ((cell.lastIndex < text.length || cells.length) && rows.length < most) {
    const found = cell.exec(text);
    if (!found)
      return { rows, problem: { line, text: "isn’t CSV: a quote stands where none may, or isn’t closed" } };
    const [whole, raw, end] = found;
    cells.push((raw.startsWith('"') ? raw.slice(1, -1).replaceAll('""', '"') : raw).trim());
    line += whole.match(/\r\n|\n|\r/g)?.length ?? 0;
    if (end !== delimiter) {
      if (cells.some(Boolean)) rows.push({ line: first, cells });
      cells = [];
      first = line;
    }
  }
  return { rows, problem: null };
}

const KEY = "secondary_client_id";
const COLUMNS = [KEY, "webhook"];
const BLANK = /^(?:[\ufeff \t,;|]*(?:\r\n|\n|\r))*/;
const SEP = /^\ufeff*"?sep=(.?)[,;|\t]*"? *(?:\r\n|\n|\r|$)/i;

/**
 * The partners of a list: with a header, or an id a line; by the rules of the command.
 * @param allowOdd whether identifiers are accepted that were probably meant as something else
 * @returns partners: [{line, partner, webhook}]; problems: [{line, text, odd}]; unknown: the ignored columns
 */
export function partnersOf(text, allowOdd = false) {
  const blank = BLANK.exec(text)[0];
  const sep = SEP.exec(text.slice(blank.length));
  const before = blank.match(/\r\n|\n|\r/g)?.length ?? 0;
  if (sep && !(sep[1] in CELLS)) return nothing(before + 1, "sep= isn’t followed by a delimiter");
  const body = text.slice(blank.length + (sep?.[0].length ?? 0));
  const { rows, problem } = parse(body, sep?.[1] ?? delimiterOf(body));
  for (const each of problem ? [...rows, problem] : rows) each.line += before + (sep ? 1 : 0);
  if (!rows.length) return { partners: [], problems: problem ? [problem] : [], unknown: [] };
  const header = headerOf(rows[0].cells);
  if (header.text) return nothing(rows[0].line, header.text);
  const list = { partners: [], problems: problem ? [problem] : [], unknown: header.unknown };
  for (const { line, cells } of header.given ? rows.slice(1) : rows) {
    const [row, wrong, odd] = checked(line, cells, header.columns, allowOdd);
    if (wrong) list.problems.push({ line, text: wrong, odd });
    else list.partners.push(row);
  }
  if (!allowOdd) setOddApart(list, header.given ? null : rows[0].line);
  setRepeatedApart(list);
  list.problems.sort((one, other) => one.line - other.line);
  return list;
}

const nothing = (line, text) => ({ partners: [], problems: [{ line, text }], unknown: [] });

/** The delimiter with which the first row has the key's column, or else the most columns. */
function delimiterOf(text) {
  const ranks = Object.keys(CELLS).map((delimiter) => {
    const cells = parse(text, delimiter, 1).rows[0]?.cells ?? [];
    return [delimiter, (cells.map(normalized).includes(normalized(KEY)) ? 1e9 : 0) + cells.length];
  });
  return ranks.reduce((best, each) => (each[1] > best[1] ? each : best))[0];
}

function headerOf(cells) {
  const columns = cells.map((cell) => COLUMNS.find((name) => normalized(name) === normalized(cell)) ?? null);
  const missing = COLUMNS.filter((name) => !columns.includes(name));
  const unknown = [...new Set(cells.filter((cell, index) => cell && !columns[index]))];
  const twice = COLUMNS.find((name) => columns.indexOf(name) !== columns.lastIndexOf(name));
  if (twice) return { text: `${twice} occurs twice in the header` };
  for (const cell of unknown) {
    const meant = missing.find((name) => similarity(normalized(cell), normalized(name)) >= 0.8);
    if (meant) return { text: `unknown column ${cell}; did you mean ${meant}?` };
  }
  if (columns.includes(KEY)) {
    const token = unknown.find((cell) => /^reporttokens?$/.test(normalized(cell)));
    return token
      ? { text: `${token} can’t be a column here: all partners get the report whose token is above` }
      : { given: true, columns, unknown };
  }
  if (cells.length > 1 || isHeading(cells[0])) {
    return { text: `${KEY} isn’t in the header; the columns are ${COLUMNS.join(", ")}. Rename the column` };
  }
  return { given: false, columns: [KEY], unknown: [] };
}

/** How similar two names are, from 0 to 1, by Ratcliff and Obershelp as Python's difflib has it. */
function similarity(one, other) {
  return (2 * matching(one, other)) / (one.length + other.length);
}

function matching(one, other) {
  let [from, at, length] = [0, 0, 0];
  for (let start = 0; start < one.length; start += 1)
    while (other.includes(one.slice(start, start + length + 1)) && start + length < one.length) {
      length += 1;
      [from, at] = [start, other.indexOf(one.slice(start, start + length))];
    }
  if (!length) return 0;
  const left = matching(one.slice(0, from), other.slice(0, at));
  return length + left + matching(one.slice(from + length), other.slice(at + length));
}

function checked(line, cells, columns, allowOdd) {
  if (cells.slice(columns.length).some(Boolean)) return [null, `has ${cells.length} cells, of ${columns.length}`];
  const [partner, webhook] = COLUMNS.map((name) => restored(cells[columns.indexOf(name)] ?? ""));
  const wrong = word(partner);
  if (wrong) return [null, `${KEY} ${wrong}`];
  if (webhook && url(webhook)) return [null, `webhook ${url(webhook)}`];
  const oddity = allowOdd ? null : oddityOf(partner);
  return oddity ? [null, `${KEY} ${oddity}`, true] : [{ line, partner, webhook: webhook || null }];
}

/** Make problems of the rows whose shape nine in ten don't have, and of a first row that may be a header. */
function setOddApart(list, headless) {
  const first = list.partners[0];
  if (first?.line === headless && list.partners.length > 1) {
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
  takeOut(list, ({ partner }) =>
    shapeOf(partner) > common ? `nine in ten rows are ${describe(common)}, and this one isn’t` : null,
  );
}

function setRepeatedApart(list) {
  const seen = new Map();
  takeOut(
    list,
    ({ line, partner }) => {
      if (seen.has(partner)) return `${partner} is on line ${seen.get(partner)} already`;
      seen.set(partner, line);
      return null;
    },
    false,
  );
}

function takeOut(list, problemOf, odd = true) {
  list.partners = list.partners.filter((row) => {
    const text = problemOf(row);
    if (text) list.problems.push({ line: row.line, text, odd });
    return !text;
  });
}

// What a spreadsheet would execute as a formula gets an apostrophe in front, as in plaid_relay_async/cli/formulas.py.
const FORMULA = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
export const neutralized = (text) => (FORMULA.test(text) ? `'${text}` : text);
export const restored = (cell) => (cell.startsWith("'") && FORMULA.test(cell) ? cell.slice(1) : cell);
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
      neutralized(row.partner),
      row.relayToken ?? "",
      neutralized(row.requestId ?? ""),
      neutralized(row.errorCode ?? ""),
      String(row.attempts),
    ]
      .map(quoted)
      .join(","),
  );
  return [OUTCOME_COLUMNS.join(","), ...lines, ""].join("\n");
}
