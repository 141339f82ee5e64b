// Explains responses: whether the call was executed, and what to do. The rules are those of the package's errors.

import { isPdf, parseRetryAfter, textIn, tokensIn } from "./http.js";

const REPORT_PAGE = "Reload this page. If the error persists, report it.";

// error_code: [meaning, action]
const CODES = {
  __proto__: null, // a response may contain any code, also the name of an inherited member
  // Of the gateway.
  UNAUTHORIZED_KEY: [
    "The gateway does not know this key.",
    "Check the key at the top, or ask the operator of the gateway for one.",
  ],
  UNAUTHORIZED_OPERATION: [
    "This key, or this gateway, does not allow this operation.",
    "Use a key that allows it. The lender creates and removes; the partner reads and refreshes.",
  ],
  UNAUTHORIZED_CREDENTIALS: [
    "The gateway does not have the Plaid credentials that this key is bound to.",
    "The operator of the gateway has to add that set of credentials, or bind the key to another set.",
  ],
  PARTNER_NOT_ALLOWED: [
    "This key may not share with that partner.",
    "Check secondary_client_id, or ask the operator of the gateway for a key that allows this partner.",
  ],
  HOST_NOT_ALLOWED: [
    "The gateway does not accept the host name in this page’s address.",
    "Open the address that the gateway printed, or have the host name added to the gateway (--name).",
  ],
  ORIGIN_NOT_ALLOWED: [
    "The request seems to come from a page of another site.",
    "Open this page at the gateway’s own address.",
  ],
  NOT_FOUND: [
    "The gateway has no such operation.",
    "Reload this page: the gateway may have been updated.",
  ],
  METHOD_NOT_ALLOWED: ["Operations are called with POST.", REPORT_PAGE],
  INVALID_HEADERS: [
    "The gateway does not accept these headers.",
    "Reload this page. If the error persists, an intermediary changes headers.",
  ],
  INVALID_HTTP: [
    "The request is not valid HTTP, or broke off.",
    "An intermediary changes requests; ask its operator.",
  ],
  INTERNAL_ERROR: ["The gateway had an unexpected error.", ""],
  INVALID_BODY: ["The body of the request is not a JSON object.", REPORT_PAGE],
  AMBIGUOUS_MEMBER: [
    "The request has a member whose name is a variant spelling of one of Plaid’s.",
    REPORT_PAGE,
  ],
  UNSUPPORTED_MEDIA_TYPE: [
    "The request is not uncompressed JSON.",
    "An intermediary changes requests; ask its operator.",
  ],
  BODY_TOO_LARGE: ["The body of the request is larger than 1 MiB.", "Send fewer tokens in one request."],
  BODY_TIMEOUT: ["The request did not arrive in time.", "Nothing was executed; send it again."],
  BUSY: ["The gateway has too many calls in flight.", "Nothing was executed; wait, and send it again."],
  RATE_LIMIT: ["The rate limit is exceeded.", "Nothing was executed; wait, and send it again."],
  UPSTREAM_UNREACHABLE: [
    "The gateway could not reach Plaid.",
    "Nothing was sent to Plaid, so it is safe to send it again later.",
  ],
  UPSTREAM_LOST: ["The gateway’s connection to Plaid was lost.", ""],
  UPSTREAM_ENCODING: ["Plaid’s response has an encoding that the gateway cannot decode.", ""],
  UPSTREAM_TIMEOUT: ["Plaid did not respond to the gateway in time.", ""],
  // Of Plaid.
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
const LASTING = new Set(["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"]); // a 429 that does not pass
const SHARED =
  /^(UNAUTHORIZED_.*|INVALID_API_KEYS|CREDITS_EXHAUSTED|(HOST|ORIGIN)_NOT_ALLOWED|INVALID_ASSET_REPORT_TOKEN|PRODUCT_NOT_READY)$/;
const REPORT_ERROR_TYPES = /^(ASSET_REPORT_ERROR|ASSETS_ERROR)$/;
// Errors of 5xx that prove that the call was not executed.
const NOT_EXECUTED = new Set(["API_ERROR PLANNED_MAINTENANCE", "GATEWAY_ERROR UPSTREAM_UNREACHABLE"]);

/** Return what an error means and what to do, or an empty text for an unknown code. */
export const explainCode = (code) => (CODES[code] ?? []).join(" ");

/** Return what an operation creates, with its article, such as "an access token". */
export const createdThing = ({ creates }) => `${/^[aeiou]/.test(creates) ? "an" : "a"} ${creates}`;

/** Return whether every other row of a list would fail with the same error: all rows share one key and one report. */
export const affectsAllRows = (code, type) => SHARED.test(code ?? "") || REPORT_ERROR_TYPES.test(type ?? "");

/**
 * Return what the end of an attempt proves.
 * @returns succeeded; definitive (not executed, and a repeat would fail again); declined (not executed, and a later
 *   attempt may succeed); in_doubt (it may have been executed)
 */
export function certaintyOf(operation, response) {
  if (response.status !== null && response.status < 300)
    return hasResult(operation, response) ? "succeeded" : "in_doubt";
  if (response.redirected) return "definitive";
  if (response.status === null) return "in_doubt";
  const [type, code] = [textIn(response, "error_type"), textIn(response, "error_code")];
  if (NOT_EXECUTED.has(`${type} ${code}`)) return "declined";
  if (response.status === 429) return LASTING.has(code) ? "definitive" : "declined";
  return response.status < 500 && type !== "API_ERROR" ? "definitive" : "in_doubt";
}

// An operation that issues a token has succeeded if the token can be read, whatever else is wrong with the response.
function hasResult(operation, response) {
  if (operation.returns === "pdf") return response.complete && isPdf(response);
  if (operation.issues) return Boolean(tokensIn(response)[operation.issues]);
  return response.complete && response.json !== null;
}

/**
 * Explain a response.
 * @returns kind: succeeded, definitive, declined, in_doubt (safe to repeat) or unknown (not safe to repeat);
 *   title; texts: sentences, of which the last says what to do
 */
export function explain(operation, response) {
  const certainty = certaintyOf(operation, response);
  const [meaning, action] = CODES[textIn(response, "error_code")] ?? ["", ""];
  if (certainty === "succeeded") return { kind: "succeeded", ...describeSuccess(operation, response) };
  if (certainty === "in_doubt") return explainDoubt(operation, response, meaning || describeFailure(response));
  if (response.redirected) {
    return {
      kind: "definitive",
      title: "Not executed",
      texts: [
        "The upstream server responded with a redirect, which is not followed.",
        "The operator of the gateway has to check its upstream address.",
      ],
    };
  }
  const seconds = parseRetryAfter(response.headers);
  return {
    kind: certainty,
    title: certainty === "declined" ? "Not executed; it may succeed later" : "Not executed",
    texts: [
      meaning || `The response is an error with status ${response.status}.`,
      quoteMessage(response),
      action ||
        textIn(response, "suggested_action") ||
        "Correct the request. The same request would fail again.",
      seconds === null ? "" : `Wait ${seconds} s before the next call.`,
    ].filter(Boolean),
  };
}

// Plaid's message is quoted. The gateway's own message says the same as the table above.
function quoteMessage(response) {
  const message = textIn(response, "error_message");
  return message && textIn(response, "error_type") !== "GATEWAY_ERROR" ? `Plaid says: “${message}”.` : "";
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

function explainDoubt(operation, response, meaning) {
  const [kind, title, action] = DOUBTS[operation.idempotency];
  return { kind, title, texts: [meaning, quoteMessage(response), action(operation).join(" ")].filter(Boolean) };
}
