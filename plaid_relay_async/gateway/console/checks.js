// The rules of the package's request records (plaid_relay_async/models/fields.py), so that what passes here passes
// there. Each gives what is wrong in words that follow the name, or null.

const UNSEEN = /[\p{Z}\p{Cc}\p{Cf}\p{Cs}]/u;
const QUOTE = /(?!')\p{Quotation_Mark}/u;
const DELIMITER = /[\p{Quotation_Mark},;]/u;
const SECRET =
  /(?<=^|[\s=,;"'])(plaid-gateway|(assets|credit-relay|access|public)-(sandbox|production|development))-/im;

/** Tell whether a value is, or holds, what has the form of a token or a key. */
export const looksSecret = (value) => SECRET.test(value);

function text(value) {
  if (!value) return "is empty";
  return UNSEEN.test(value) ? "has a space or an invisible character in it" : null;
}

export function word(value) {
  return text(value) ?? (DELIMITER.test(value) ? "has a quote, a comma or a semicolon in it" : null);
}

export function url(value) {
  const wrong = text(value);
  if (wrong) return wrong;
  const whole = /^https?:\/\/[^/?#\\]/i.test(value) && !QUOTE.test(value) && URL.canParse(value);
  const { hostname, port } = new URL(whole ? value : "null:");
  // A port that is the scheme's own isn't kept by URL, and so isn't 0.
  return hostname && !DELIMITER.test(hostname) && port !== "0" ? null : "must be an http(s) URL";
}

function days(value, input) {
  const whole = /^-?\d+$/.test(value.trim());
  const within = whole && Number(value) >= input.least && Number(value) <= input.most;
  return within ? null : `must be a whole number from ${input.least} to ${input.most}`;
}

/** The lines of a list, without blank ones. */
export const linesOf = (value) =>
  value
    .split(/\r?\n/)
    .map((line) => line.trim())
    .filter(Boolean);

function words(value, input) {
  const given = linesOf(value);
  if (given.length > (input.most ?? Infinity)) return `holds ${given.length}, of at most ${input.most}`;
  const wrong = given.map(word).findIndex(Boolean);
  return wrong < 0 ? null : `line ${wrong + 1} ${word(given[wrong])}`;
}

const CHECKS = {
  token: word,
  word,
  url,
  days,
  words,
  tokens: words,
  // Python counts characters, JavaScript counts halves of some.
  text: (value, input) =>
    [...value].length > (input.most ?? Infinity) ? `has more than ${input.most} characters` : null,
  choice: (value, input) => (input.choices.includes(value) ? null : "is none of the choices"),
  flag: () => null,
};

/** What is wrong with the value of an input, or null. */
export function problemWith(input, value) {
  if (input.kind === "flag") return null;
  if (!value.trim()) return input.required || value ? "is empty" : null;
  const wrong = CHECKS[input.kind](value, input);
  if (wrong) return wrong;
  return !input.env && looksSecret(value)
    ? "holds what looks like a token or a key: those have fields of their own"
    : null;
}

/** What is wrong with a gateway key, or null. */
export function problemWithKey(value) {
  if (!value) return "is empty: whoever runs the gateway gives you one";
  return /^[\x21-\x7e]+$/.test(value) ? null : "has a space or a character in it that no key has";
}

/** What is wrong with the gateway's address, or null. */
export function problemWithAddress(value) {
  const wrong = url(value);
  if (wrong) return wrong;
  const { username, password, search, hash } = new URL(value);
  if (username || password) return "must not hold a name or a password";
  return search || hash ? "must end before any ? or #" : null;
}
