// Checks inputs as the package's request records do (plaid_relay_async/models/fields.py): what is valid here is valid
// there. Bounds, and the texts of the problems, are the package's. Each check returns the problem as words that follow
// the name of the field, or null.

import { DELIMITER, PROBLEMS, QUOTE } from "./operations.js";

const INVISIBLE = /[\p{Z}\p{Cc}\p{Cf}]/u;
const SECRET =
  /(?<=^|[\s=,;"'])(plaid-gateway|(assets|credit-relay|access|public)-(sandbox|production|development))-/im;

/** Return whether a value contains something that has the form of a token or a key. */
export const looksSecret = (value) => SECRET.test(value);

function problemWithText(value) {
  if (!value) return PROBLEMS.empty;
  return value.isWellFormed() ? null : PROBLEMS.misdecoded;
}

const problemWithWhitespace = (value) =>
  problemWithText(value) ?? (INVISIBLE.test(value) ? PROBLEMS.whitespace : null);

export const problemWithIdentifier = (value) =>
  problemWithWhitespace(value) ?? (DELIMITER.test(value) ? PROBLEMS.delimiter : null);

export function problemWithUrl(value) {
  const problem = problemWithWhitespace(value);
  if (problem) return problem;
  const isUrl = /^https?:\/\/[^/?#\\]/i.test(value) && !QUOTE.test(value) && URL.canParse(value);
  const { hostname, port } = new URL(isUrl ? value : "null:");
  // URL omits the scheme's default port, so a port of "0" was written in the address.
  return hostname && !DELIMITER.test(hostname) && port !== "0" ? null : PROBLEMS.url;
}

function problemWithNumber(value, input) {
  const isWhole = /^-?\d+$/.test(value.trim());
  return isWhole && Number(value) >= input.min && Number(value) <= input.max ? null : input.problem;
}

/** Return the lines of a list without blank ones. */
export const linesOf = (value) =>
  value
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter(Boolean);

function problemWithIdentifiers(value, input) {
  const lines = linesOf(value);
  if (lines.length > (input.max ?? Infinity)) return input.problem.replace("{count}", lines.length);
  const index = lines.map(problemWithIdentifier).findIndex(Boolean);
  return index < 0 ? null : `line ${index + 1} ${problemWithIdentifier(lines[index])}`;
}

const CHECKS = {
  token: problemWithIdentifier,
  identifier: problemWithIdentifier,
  url: problemWithUrl,
  number: problemWithNumber,
  identifiers: problemWithIdentifiers,
  tokens: problemWithIdentifiers,
  // Python counts characters. `length` counts UTF-16 code units, of which some characters have two.
  text: (value, input) =>
    problemWithText(value) ?? ([...value].length > (input.max ?? Infinity) ? input.problem : null),
  choice: (value, input) => (input.choices.includes(value) ? null : "is not one of the choices"),
  flag: () => null,
};

/** Return the problem with the value of an input, or null. */
export function problemWith(input, value) {
  if (input.kind === "flag") return null;
  if (!value.trim()) return input.required || value ? PROBLEMS.empty : null;
  const problem = CHECKS[input.kind](value, input);
  if (problem) return problem;
  return !input.env && looksSecret(value)
    ? "contains something that looks like a token or a key; enter it in the field for it"
    : null;
}

/** Return the problem with a gateway key, or null. */
export function problemWithKey(value) {
  if (!value) return "is empty; ask the operator of the gateway for one";
  return /^[\x21-\x7e]+$/.test(value) ? null : "contains a space or another character that no key has";
}

/** Return the problem with the gateway's address, or null. */
export function problemWithAddress(value) {
  const problem = problemWithUrl(value);
  if (problem) return problem;
  const { username, password, search, hash } = new URL(value);
  if (username || password) return "must not contain a name or a password";
  return search || hash ? "must not contain a query or a fragment (? or #)" : null;
}
