// The rules for identifiers in a list, the same as in plaid_relay_async/cli/identifiers.py. tests/lists.json tests both.

const NUMBER = /^([0-9]+([.,][0-9]*)?[eE][+-][0-9]+|[0-9]+[.,][0-9]+|[0-9]{1,3}([.,][0-9]{3})+([.,][0-9]+)?)$/;
const TOKEN = /[a-z-]-(sandbox|production|development)-[\p{L}\p{N}_-]/u;
// A plural has its own `s?`: each text matches in one way only, or a long one would take exponential time.
const HEADING = new RegExp(
  "^(((secondary|plaid|external|relay|partner|client|customer|lender|borrower|recipient|company|companie" +
    "|organi[sz]ation|bank|institution|user|account|report|kunde|kunden|kreditgeber|empfänger|empfaenger|firma" +
    "|firmen|id|identifier|key|code|name|no|nr|number|nummer|token|value|webhook)s?)+" +
    "|(sub|grand)?totals?|sum|summe|gesamt|gesamtsumme|count|anzahl" +
    "|null|nil|none|nan|undefined|true|false|n/?a|#n/a|#null!|#ref!|#name\\?|#value!|#div/0!|#num!)$",
);
// Each alphabet contains those before it; an identifier that matches none has the next number.
const ALPHABETS = [/^[0-9]*$/, /^[0-9A-Fa-f]*$/, /^[0-9A-Za-z]*$/, /^[0-9A-Za-z._-]*$/];
const DESCRIPTIONS = [
  "digits only",
  "hexadecimal",
  "letters and digits only",
  "letters, digits, -, _ and . only",
];

/** The shape of an identifier: the smallest alphabet that it is written in, as a number. */
export function shapeOf(identifier) {
  const shape = ALPHABETS.findIndex((alphabet) => alphabet.test(identifier));
  return shape < 0 ? ALPHABETS.length : shape;
}

/** The smallest shape that contains at least nine in ten of these. */
export function commonShape(shapes) {
  const counts = new Array(ALPHABETS.length + 1).fill(0);
  for (const shape of shapes) counts[shape] += 1;
  let within = 0;
  return counts.findIndex((count) => {
    within += count;
    return 10 * within >= 9 * shapes.length;
  });
}

/** What a shape is called in a message. */
export const describe = (shape) => DESCRIPTIONS[shape];

/** The name of a column without its case, spaces, `-` and `_`. */
export const normalized = (name) => name.replace(/[\s_-]+/g, "").toLowerCase();

/** Whether a cell reads as a column's name, a total, or a placeholder for a missing value. */
export const isHeading = (text) => HEADING.test(normalized(text));

/** Why an identifier was probably meant as something else, or null. */
export function oddityOf(identifier) {
  if (TOKEN.test(identifier)) return "is a token of Plaid's";
  if (isHeading(identifier)) return "is a heading, a total, or a placeholder for a missing value";
  if (/^[=@'+#<*/-]/.test(identifier)) return `begins with ${identifier[0]}`;
  if (NUMBER.test(identifier)) return "is a number as a spreadsheet formats it";
  if (identifier.includes("|")) return "contains the delimiter |";
  return identifier.includes("://") ? "is a URL" : null;
}
