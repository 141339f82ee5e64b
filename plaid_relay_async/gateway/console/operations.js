// What the gateway says about the operations, their inputs and tokens. plaid_relay_async/gateway/forms.py builds it from
// the package's endpoint table and request records, and describes each member.

const response = await fetch("/console/operations.json", { credentials: "omit" });
const { operations, next, problems, quote, delimiter, errors } = await response.json();

export const OPERATIONS = operations;
export const NEXT = next; // by the token in a response: the paths of the operations to offer next
export const PROBLEMS = problems; // what can be wrong with any identifier, text or URL
export const QUOTE = new RegExp(quote, "u");
export const DELIMITER = new RegExp(delimiter, "u");
export const ERRORS = errors; // what error codes prove

/** Return the operation with a path. */
export const operationOf = (path) => OPERATIONS.find((operation) => operation.path === path);
