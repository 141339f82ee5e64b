// Explains responses: whether the call was executed, and what to do. The rules are those of the package's errors, and
// tests/browser compares them. The gateway's own errors are shown in the words of the response.

import { isPdf, parseRetryAfter, textIn, tokensIn } from "./http.js";
import { ERRORS } from "./operations.js";

// Plaid's error_code: [meaning, action]. The gateway's own errors bring both with them.
const CODES = {
  __proto__: null, // a response may contain any code, also the name of an inherited member
  INVALID_API_KEYS: [
    "Plaid does not accept the gateway’s credentials.",
    "The operator of the gateway has to correct its client ID or secret. A secret is valid in one environment only.",
  ],
  UNAUTHORIZED_ENVIRONMENT: [
    "These credentials are not valid in this environment.",
    "Ask Plaid for access, or use the sandbox.",
  ],
  UNAUTHORIZED_ROUTE_ACCESS: [
    "These credentials do not allow this operation.",
    "Ask Plaid to enable it.",
  ],
  INVALID_PRODUCT: ["These credentials do not allow this product.", "Ask Plaid to enable it."],
  MISSING_FIELDS: ["The request lacks required fields.", "Fill in the fields that Plaid names."],
  UNKNOWN_FIELDS: [
    "Plaid does not know some fields of the request.",
    "Reload this page. If the error persists, Plaid’s API has changed; report it.",
  ],
  INVALID_FIELD: ["Plaid does not accept a value in the request.", "Correct the field that Plaid names."],
  INVALID_ASSET_REPORT_TOKEN: [
    "Plaid does not know this report token, or it was removed.",
    "Check it for missing characters. It is valid with the lender’s credentials, in one environment.",
  ],
  INVALID_RELAY_TOKEN: [
    "This relay token is unknown, was removed, or belongs to another partner.",
    "Read and refresh with the partner’s key; create and remove with the lender’s.",
  ],
  INVALID_ACCESS_TOKEN: [
    "Plaid does not know this access token, or it was removed.",
    "Check it. It is valid in one environment only.",
  ],
  INVALID_PUBLIC_TOKEN: [
    "Plaid does not know this public token.",
    "It is valid once, and for 30 minutes; create another.",
  ],
  PRODUCT_NOT_READY: [
    "The report is still being generated.",
    "This takes up to a minute; send the request again in a moment.",
  ],
  ASSET_REPORT_GENERATION_FAILED: [
    "The report could not be generated.",
    "See causes in the response, and create a new report.",
  ],
  DATA_UNAVAILABLE: [
    "The data of an Item is not available.",
    "See causes in the response, repair that Item, and create a new report.",
  ],
  ITEM_LOGIN_REQUIRED: [
    "The user has to log in to the bank again.",
    "Send the user through Link’s update mode.",
  ],
  CREDITS_EXHAUSTED: ["The free allocation is used up.", "Waiting does not help; contact Plaid."],
  TRIAL_CONNECTION_LIMIT: ["The trial’s Items are used up.", "Waiting does not help; contact Plaid."],
  PLANNED_MAINTENANCE: [
    "Plaid is down for maintenance.",
    "Nothing was executed. See status.plaid.com, and send it again when the maintenance is over.",
  ],
  INTERNAL_SERVER_ERROR: ["Plaid had an internal error.", ""],
  SANDBOX_ONLY: ["This operation exists in the sandbox only.", "Use a gateway to the sandbox."],
};
const LASTING = new Set(ERRORS.permanent_limits); // a 429 that does not pass
const NOT_EXECUTED = new Set(ERRORS.declined.map((pair) => pair.join(" "))); // also with a 5xx
const SHARED_CODES = new Set([...ERRORS.shared, "INVALID_ASSET_REPORT_TOKEN"]);
const SHARED_PATTERN = /^(UNAUTHORIZED_.*|(HOST|ORIGIN)_NOT_ALLOWED)$/;
const REPORT_ERROR_TYPES = /^(ASSET_REPORT_ERROR|ASSETS_ERROR)$/;
const REDIRECT = [
  "The upstream server responded with a redirect, which is not followed.",
  "The operator of the gateway has to check its upstream address.",
];

/** Return what an operation creates, with its article, such as "an access token". */
export const createdThing = ({ creates }) => `${/^[aeiou]/.test(creates) ? "an" : "a"} ${creates}`;

/** Return whether every other row of a list would fail with the same error: all rows share one key and one report. */
export const affectsAllRows = (code, type) =>
  SHARED_CODES.has(code) ||
  SHARED_PATTERN.test(code ?? "") ||
  REPORT_ERROR_TYPES.test(type ?? "") ||
  (code === "PRODUCT_NOT_READY" && type !== "ITEM_ERROR");

/**
 * Return whether a call has succeeded, so that its result can be read. An operation that issues a token has succeeded
 * if the token can be read, whatever else is wrong with the response.
 */
export function hasSucceeded(operation, response) {
  if (response.status === null || response.status >= 300) return false;
  if (operation.issues) return Boolean(tokensIn(response)[operation.issues]);
  return response.complete && (operation.returns === "pdf" ? isPdf(response) : response.json !== null);
}

/**
 * Return what the end of an attempt proves, in the words of the package's `Certainty`.
 * @returns definitive (a success, or an error that a repeat would get as well), declined (not executed, and a later
 *   attempt may succeed) or in_doubt (it may have been executed). No browser reports that a request was not_sent.
 */
export function certaintyOf(operation, response) {
  if (response.redirected || hasSucceeded(operation, response)) return "definitive";
  if (response.status === null || response.status < 300) return "in_doubt";
  const [type, code] = [textIn(response, "error_type"), textIn(response, "error_code")];
  if (NOT_EXECUTED.has(`${type} ${code}`)) return "declined";
  if (response.status === 429 && !LASTING.has(code)) return "declined";
  return response.status < 500 && type !== "API_ERROR" ? "definitive" : "in_doubt";
}

/**
 * Explain a response.
 * @returns kind: succeeded, or else the certainty, or unknown for a call in doubt that is not safe to repeat;
 *   title; texts: sentences, of which the last ones say what to do
 */
export function explain(operation, response) {
  if (hasSucceeded(operation, response))
    return { kind: "succeeded", ...describeSuccess(operation, response) };
  const certainty = certaintyOf(operation, response);
  if (certainty === "in_doubt") return explainDoubt(operation, response);
  const title = certainty === "declined" ? "Not executed; it may succeed later" : "Not executed";
  return { kind: certainty, title, texts: response.redirected ? REDIRECT : explainError(response) };
}

function explainError(response) {
  const [, action] = CODES[textIn(response, "error_code")] ?? [];
  const seconds = parseRetryAfter(response.headers);
  return [
    ...describeError(response, `The response is an error with status ${response.status}.`),
    action || textIn(response, "suggested_action") || "Correct the request. The same request would fail again.",
    ...(seconds === null ? [] : [`Wait ${seconds} s before the next call.`]),
  ];
}

// Return the meaning of Plaid's code and the message, or the fallback if there is neither.
function describeError(response, fallback) {
  const [meaning] = CODES[textIn(response, "error_code")] ?? [];
  const message = textIn(response, "error_message");
  const source = textIn(response, "error_type") === "GATEWAY_ERROR" ? "The gateway" : "Plaid";
  const texts = [meaning, message && `${source} says: “${message}”.`].filter(Boolean);
  return texts.length ? texts : [fallback];
}

const SUCCESS_TITLES = { SAFE: "Read", IDEMPOTENT: "Removed", NON_IDEMPOTENT: "Created" };
const TRUNCATED =
  "The response was truncated after the token. The token is valid; the rest of the response is lost.";

function describeSuccess(operation, response) {
  const texts = response.json || operation.returns === "pdf" ? [] : [TRUNCATED];
  if (operation.issues) texts.push("Its token is under Received tokens, below.");
  return { title: operation.creates === "webhook" ? "Sent" : SUCCESS_TITLES[operation.idempotency], texts };
}

function describeFailure({ status, complete }) {
  if (status === null) return "No response arrived. The browser does not report whether the request was sent.";
  if (status < 300) return complete ? "The response does not have the expected form." : "The response was truncated.";
  return `The response has status ${status}, which does not say whether the call was executed.`;
}

// By idempotency: kind, title, and a function that returns what to do.
const DOUBTS = {
  SAFE: ["in_doubt", "No result", () => ["It is a read, so it is safe to send it again."]],
  IDEMPOTENT: [
    "in_doubt",
    "Unknown; safe to repeat",
    () => [
      "The removal may have been executed. It is safe to send it again:",
      "if it was executed, Plaid responds that there is no such token.",
    ],
  ],
  NON_IDEMPOTENT: [
    "unknown",
    "Unknown",
    (operation) => [
      `${describePossibleResult(operation)}. Plaid’s API can neither list nor look up what was created.`,
      "The page does not repeat the call. Ask Plaid’s support, with the request ID if there is one,",
      "or send it again and accept that there may be two.",
    ],
  ],
};

function describePossibleResult(operation) {
  if (operation.creates === "webhook") return "The webhook may have been sent";
  const thing = createdThing(operation).replace("a", "A");
  return operation.creates.endsWith("token")
    ? `${thing} may exist that was not received`
    : `${thing} may exist whose token was not received`;
}

function explainDoubt(operation, response) {
  const [kind, title, action] = DOUBTS[operation.idempotency];
  const texts = [...describeError(response, describeFailure(response)), action(operation).join(" ")];
  return { kind, title, texts };
}
