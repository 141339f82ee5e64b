// The rules for identifiers in a list. They are the same as in plaid_relay_async/cli/identifiers.py; tests/lists.json
// tests both.

const NUMBER = /^([0-9]+([.,][0-9]*)?[eE][+-][0-9]+|[0-9]+[.,][0-9]+|[0-9]{1,3}([.,][0-9]{3})+([.,][0-9]+)?)$/;
const TOKEN = /[a-z-]-(sandbox|production|development)-[\p{L}\p{N}_-]/u;
// The plural is a separate `s?`, so that each text matches in one way only. Otherwise a long text would take
// exponential time.
const HEADING = new RegExp(
  "^(((secondary|plaid|external|relay|partner|client|customer|lender|borrower|recipient|company|companie" +
    "|organi[sz]ation|bank|institution|user|account|report|kunde|kunden|kreditgeber|empfänger|empfaenger|firma" +
    "|firmen|id|identifier|key|code|name|no|nr|number|nummer|token|value|webhook)s?)+" +
    "|(sub|grand)?totals?|sum|summe|gesamt|gesamtsumme|count|anzahl" +
    "|null|nil|none|nan|undefined|true|false|n/?a|#n/a|#null!|#ref!|#name\\?|#value!|#div/0!|#num!)$",
);
// Each alphabet contains the previous ones. An identifier that matches none of them has the next number as its shape.
const ALPHABETS = [/^[0-9]*$/, /^[0-9A-Fa-f]*$/, /^[0-9A-Za-z]*$/, /^[0-9A-Za-z._-]*$/];
const DESCRIPTIONS = [
  "digits only",
  "hexadecimal",
  "letters and digits only",
  "letters, digits, -, _ and . only",
];

/** Return the shape of an identifier: the number of the smallest alphabet that contains its characters. */
export function shapeOf(identifier) {
  const shape = ALPHABETS.findIndex((alphabet) => alphabet.test(identifier));
  return shape < 0 ? ALPHABETS.length : shape;
}

/** Return the smallest shape that contains at least nine in ten of the given shapes. */
export function commonShape(shapes) {
  const counts = new Array(ALPHABETS.length + 1).fill(0);
  for (const shape of shapes) counts[shape] += 1;
  let covered = 0;
  return counts.findIndex((count) => {
    covered += count;
    return 10 * covered >= 9 * shapes.length;
  });
}

/** Return the description of a shape for a message. */
export const describeShape = (shape) => DESCRIPTIONS[shape];

/** Return the name of a column in lower case, without spaces, `-` and `_`. */
export const normalize = (name) => name.replace(/[\s_-]+/g, "").toLowerCase();

/** Return whether a cell is probably a column's name, a total, or a placeholder for a missing value. */
export const isHeading = (text) => HEADING.test(normalize(text));

/** Return why a text is probably not an identifier, or null. */
export function oddityOf(identifier) {
  if (TOKEN.test(identifier)) return "is one of Plaid's tokens";
  if (isHeading(identifier)) return "is a heading, a total, or a placeholder for a missing value";
  if (/^[=@'+#<*/-]/.test(identifier)) return `begins with ${identifier[0]}`;
  if (NUMBER.test(identifier)) return "is a number as a spreadsheet formats it";
  if (identifier.includes("|")) return "contains the delimiter |";
  return identifier.includes("://") ? "is a URL" : null;
}
