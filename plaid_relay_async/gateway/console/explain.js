// What an answer means: whether something was done, and the way out. The rules are those of the package's errors.

import { isPdf, retryAfter, tokensIn } from "./call.js";

// error_code: [what it means, the way out]
const CODES = {
  // The gateway's own.
  UNAUTHORIZED_KEY: ["The gateway doesn’t know this key.", "Check the key at the top, or ask whoever runs the gateway for one."],
  UNAUTHORIZED_OPERATION: [
    "This key, or this gateway, isn’t for this operation.",
    "Use a key that is for it; a report’s owner creates and removes, its partner reads and refreshes.",
  ],
  UNAUTHORIZED_CREDENTIALS: [
    "The gateway lacks the Plaid credentials that this key is bound to.",
    "Whoever runs the gateway has to give it that set of credentials, or the key another set.",
  ],
  PARTNER_NOT_ALLOWED: [
    "This key may not share with that partner.",
    "Check secondary_client_id, or ask whoever runs the gateway to let the key name this partner.",
  ],
  HOST_NOT_ALLOWED: [
    "The gateway doesn’t answer to the name in this page’s address.",
    "Open the page by the address that the gateway printed, or have that name added to the gateway’s.",
  ],
  ORIGIN_NOT_ALLOWED: ["The request seems to come from another site’s page.", "Open this page by the gateway’s own address."],
  METHOD_NOT_ALLOWED: ["Operations are called with POST.", "Reload this page; if it stays, report it."],
  INVALID_HEADERS: ["The gateway can’t take these headers.", "Reload this page; if it stays, something on the way changes headers."],
  INVALID_HTTP: ["The request isn’t well-formed.", "Something on the way changes requests: ask whoever runs it."],
  INTERNAL_ERROR: ["The gateway met a bug of its own.", ""],
  INVALID_BODY: ["The request isn’t a JSON object.", "Reload this page; if it stays, report it."],
  UNSUPPORTED_MEDIA_TYPE: ["The request isn’t plain JSON.", "Something on the way changes requests: ask whoever runs it."],
  BODY_TOO_LARGE: ["The request has more than 1 MiB.", "Send fewer tokens at once."],
  BODY_TIMEOUT: ["The request didn’t arrive in time.", "Nothing was carried out: send it again."],
  BUSY: ["Too much is under way at once.", "Nothing was carried out: wait, and send it again."],
  RATE_LIMIT: ["There were too many calls.", "Nothing was carried out: wait, and send it again."],
  UPSTREAM_UNREACHABLE: ["The gateway couldn’t reach Plaid.", "Nothing was sent to Plaid, so it is safe to send it again later."],
  UPSTREAM_LOST: ["The gateway’s connection to Plaid was lost.", ""],
  UPSTREAM_TIMEOUT: ["Plaid didn’t answer the gateway in time.", ""],
  // Plaid's.
  INVALID_API_KEYS: [
    "Plaid doesn’t take the gateway’s credentials.",
    "Whoever runs the gateway has to mend its client id or secret; a secret belongs to one environment.",
  ],
  UNAUTHORIZED_ENVIRONMENT: ["These credentials aren’t for this environment.", "Ask Plaid for access, or use the sandbox."],
  UNAUTHORIZED_ROUTE_ACCESS: ["These credentials aren’t for this operation.", "Ask Plaid to enable it for you."],
  INVALID_PRODUCT: ["These credentials aren’t for this product.", "Ask Plaid to enable it for you."],
  MISSING_FIELDS: ["Plaid misses fields in the request.", "Fill in those that the message names."],
  UNKNOWN_FIELDS: ["Plaid doesn’t know some fields of the request.", "Reload this page; if it stays, Plaid has changed: report it."],
  INVALID_FIELD: ["Plaid doesn’t take a value in the request.", "Mend the one that the message names."],
  INVALID_ASSET_REPORT_TOKEN: [
    "Plaid doesn’t know this report token, or it was removed.",
    "Check it for missing characters; it belongs to the owner’s credentials and to one environment.",
  ],
  INVALID_RELAY_TOKEN: [
    "This relay token is unknown, was removed, or is another’s.",
    "Read and refresh with the partner’s key; create and remove with the owner’s.",
  ],
  INVALID_ACCESS_TOKEN: ["Plaid doesn’t know this access token, or it was removed.", "Check it; it belongs to one environment."],
  INVALID_PUBLIC_TOKEN: ["Plaid doesn’t know this public token.", "It lives 30 minutes, and only once: make another."],
  PRODUCT_NOT_READY: ["The report is still being generated.", "It takes seconds to a minute: send again in a moment."],
  ASSET_REPORT_GENERATION_FAILED: ["The report couldn’t be generated.", "See causes in the answer, and make a new report."],
  DATA_UNAVAILABLE: ["An Item’s data couldn’t be had.", "See causes in the answer; mend that Item, and make a new report."],
  ITEM_LOGIN_REQUIRED: ["The person has to log in at the bank again.", "Let them go through Link’s update mode."],
  CREDITS_EXHAUSTED: ["The free allocation is used up.", "Waiting won’t help: talk to Plaid."],
  TRIAL_CONNECTION_LIMIT: ["The trial’s Items are used up.", "Waiting won’t help: talk to Plaid."],
  PLANNED_MAINTENANCE: [
    "Plaid is down for maintenance.",
    "Nothing was carried out. status.plaid.com tells when it is over; then send it again.",
  ],
  INTERNAL_SERVER_ERROR: ["Plaid is in trouble.", ""],
  SANDBOX_ONLY: ["This operation is there in the sandbox alone.", "Use a gateway to the sandbox."],
  NOT_FOUND: ["There is no such operation here.", "Reload this page: the gateway may have been updated."],
};
const LASTING = new Set(["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"]);
const SHARED = /^(UNAUTHORIZED_.*|INVALID_API_KEYS|CREDITS_EXHAUSTED|HOST_NOT_ALLOWED|ORIGIN_NOT_ALLOWED)$/;
const SURELY_NOT = new Set(["API_ERROR PLANNED_MAINTENANCE", "GATEWAY_ERROR UPSTREAM_UNREACHABLE"]);

/** What an operation makes, such as "an access token". */
export const thingOf = ({ makes }) => `${/^[aeiou]/.test(makes) ? "an" : "a"} ${makes}`;

/** Tell whether an error would meet every other row of a list, too. */
export const concernsEveryone = (code) => SHARED.test(code ?? "");

/**
 * How an attempt ended, as far as it tells what Plaid did.
 * @returns done; refused (nothing was carried out); later (the same, and it may pass later); unknown
 */
export function endingOf(operation, reply) {
  if (reply.status !== null && reply.status < 300) return hasWhatItShould(operation, reply) ? "done" : "unknown";
  if (reply.redirected) return "refused";
  if (reply.status === null) return "unknown";
  const { error_type: type, error_code: code } = reply.json ?? {};
  if (SURELY_NOT.has(`${type} ${code}`)) return "later";
  if (reply.status === 429) return LASTING.has(code) ? "refused" : "later";
  return reply.status < 500 && type !== "API_ERROR" ? "refused" : "unknown";
}

const HOLDS = { "relay token": "relay_token", "access token": "access_token", "test Item": "public_token" };

// What creates has done so as soon as its token can be read, whatever else is wrong with the answer.
function hasWhatItShould(operation, reply) {
  if (operation.pdf) return reply.whole && isPdf(reply);
  const name = HOLDS[operation.makes] ?? (operation.path === "/credit/relay/refresh" ? "relay_token" : "asset_report_token");
  const isToken = operation.replay === "CREATES" && operation.makes !== "webhook";
  if (isToken) return Boolean(tokensIn(reply)[name]);
  return reply.whole && reply.json !== null;
}

/**
 * Explain an answer to a person.
 * @returns kind (done, refused, later, unknown, lost), title, texts: sentences, the way out last
 */
export function explain(operation, reply) {
  const ending = endingOf(operation, reply);
  const code = reply.json?.error_code;
  const [meaning, way] = CODES[code] ?? ["", ""];
  if (ending === "done") return { kind: "done", ...whatWasDone(operation, reply) };
  if (ending === "unknown") return unsure(operation, reply, meaning || whatCame(reply));
  if (reply.redirected) {
    return { kind: "refused", title: "Not carried out", texts: ["Plaid’s side answered with a redirect, which isn’t followed.", "Whoever runs the gateway has to check its upstream address."] };
  }
  const wait = retryAfter(reply.headers);
  return {
    kind: ending,
    title: ending === "later" ? "Not carried out; it may pass later" : "Not carried out",
    texts: [
      meaning || `The answer is an error: status ${reply.status}.`,
      saidBy(reply),
      way || reply.json?.suggested_action || "Mend the request; the same one will be refused again.",
      wait === null ? "" : `Wait ${wait} s before the next call.`,
    ].filter(Boolean),
  };
}

// Plaid's own words; the gateway's are those of the table above.
function saidBy(reply) {
  const { error_type: type, error_message: message } = reply.json ?? {};
  return message && type !== "GATEWAY_ERROR" ? `Plaid says: “${message}”.` : "";
}

const DONE = { HARMLESS: "Read", IDEMPOTENT: "Removed", CREATES: "Made" };

function whatWasDone(operation, reply) {
  const texts = reply.whole ? [] : [CUT];
  if (operation.replay === "CREATES" && operation.makes !== "webhook") texts.push("Its token is among those in hand, below.");
  return { title: operation.makes === "webhook" ? "Sent" : DONE[operation.replay], texts };
}

const CUT = "The answer broke off, but the token had arrived: keep it. What else the answer said is lost.";

function whatCame(reply) {
  if (reply.status === null) return "No answer came, and the browser can’t tell whether the request had left.";
  if (reply.status < 300) return reply.whole ? "The answer isn’t what it should be." : "The answer broke off.";
  return `The answer is status ${reply.status}, which doesn’t tell what was done.`;
}

const IS_MADE = { "relay token": "A relay token may exist that nobody holds", webhook: "The webhook may have been sent" };

function unsure(operation, reply, meaning) {
  const said = saidBy(reply);
  if (operation.replay === "HARMLESS") {
    const texts = [meaning, said, "It is a read, so it is safe to send it again."];
    return { kind: "lost", title: "Lost", texts: texts.filter(Boolean) };
  }
  if (operation.replay === "IDEMPOTENT") {
    const texts = [meaning, said, "It may have been removed. It is safe to send it again: if it is gone, Plaid says that there is no such token."];
    return { kind: "lost", title: "Nobody can tell", texts: texts.filter(Boolean) };
  }
  const made = IS_MADE[operation.makes] ?? `${thingOf(operation).replace("a", "A")} may exist that nobody holds the token of`;
  const texts = [
    meaning,
    said,
    `${made}, and Plaid can’t be asked: it neither lists nor finds what was made.`,
    "It isn’t repeated by itself. Decide: ask Plaid’s support, with the request id if there is one, or send it again and accept that there may be two.",
  ];
  return { kind: "unknown", title: "Unknown: nobody can tell", texts: texts.filter(Boolean) };
}
