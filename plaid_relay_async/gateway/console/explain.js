// What an answer means: whether something was done, and the way out. The rules are those of the package's errors.

import { isPdf, retryAfter, textIn, tokensIn } from "./call.js";

// error_code: [what it means, the way out]
const CODES = {
  __proto__: null, // an answer may name anything
  // The gateway's own.
  UNAUTHORIZED_KEY: [
    "The gateway doesn’t know this key.",
    "Check the key at the top, or ask whoever runs the gateway for one.",
  ],
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
  ORIGIN_NOT_ALLOWED: [
    "The request seems to come from another site’s page.",
    "Open this page by the gateway’s own address.",
  ],
  METHOD_NOT_ALLOWED: ["Operations are called with POST.", "Reload this page; if it stays, report it."],
  INVALID_HEADERS: [
    "The gateway can’t take these headers.",
    "Reload this page; if it stays, something on the way changes headers.",
  ],
  INVALID_HTTP: [
    "The request isn’t well-formed.",
    "Something on the way changes requests: ask whoever runs it.",
  ],
  INTERNAL_ERROR: ["The gateway failed by a bug of its own.", ""],
  INVALID_BODY: ["The request isn’t a JSON object.", "Reload this page; if it stays, report it."],
  AMBIGUOUS_MEMBER: [
    "The request has a member whose name is another spelling of one that Plaid knows.",
    "Reload this page; if it stays, report it.",
  ],
  UNSUPPORTED_MEDIA_TYPE: [
    "The request isn’t plain JSON.",
    "Something on the way changes requests: ask whoever runs it.",
  ],
  BODY_TOO_LARGE: ["The request has more than 1 MiB.", "Send fewer tokens at once."],
  BODY_TIMEOUT: ["The request didn’t arrive in time.", "Nothing was carried out: send it again."],
  BUSY: ["Too much is under way at once.", "Nothing was carried out: wait, and send it again."],
  RATE_LIMIT: ["There were too many calls.", "Nothing was carried out: wait, and send it again."],
  UPSTREAM_UNREACHABLE: [
    "The gateway couldn’t reach Plaid.",
    "Nothing was sent to Plaid, so it is safe to send it again later.",
  ],
  UPSTREAM_LOST: ["The gateway’s connection to Plaid was lost.", ""],
  UPSTREAM_ENCODING: ["Plaid’s response has an encoding that the gateway can’t decode.", ""],
  UPSTREAM_TIMEOUT: ["Plaid didn’t answer the gateway in time.", ""],
  // Plaid's.
  INVALID_API_KEYS: [
    "Plaid doesn’t accept the gateway’s credentials.",
    "Whoever runs the gateway has to correct its client id or secret; a secret belongs to one environment.",
  ],
  UNAUTHORIZED_ENVIRONMENT: [
    "These credentials aren’t for this environment.",
    "Ask Plaid for access, or use the sandbox.",
  ],
  UNAUTHORIZED_ROUTE_ACCESS: [
    "These credentials aren’t for this operation.",
    "Ask Plaid to enable it for you.",
  ],
  INVALID_PRODUCT: ["These credentials aren’t for this product.", "Ask Plaid to enable it for you."],
  MISSING_FIELDS: ["Fields are missing in the request.", "Fill in those that Plaid names."],
  UNKNOWN_FIELDS: [
    "Plaid doesn’t know some fields of the request.",
    "Reload this page; if it stays, Plaid has changed: report it.",
  ],
  INVALID_FIELD: ["Plaid doesn’t accept a value in the request.", "Correct the one that Plaid names."],
  INVALID_ASSET_REPORT_TOKEN: [
    "Plaid doesn’t know this report token, or it was removed.",
    "Check it for missing characters; it belongs to the owner’s credentials and to one environment.",
  ],
  INVALID_RELAY_TOKEN: [
    "This relay token is unknown, was removed, or is another’s.",
    "Read and refresh with the partner’s key; create and remove with the owner’s.",
  ],
  INVALID_ACCESS_TOKEN: [
    "Plaid doesn’t know this access token, or it was removed.",
    "Check it; it belongs to one environment.",
  ],
  INVALID_PUBLIC_TOKEN: [
    "Plaid doesn’t know this public token.",
    "It is good for 30 minutes, and once: create another.",
  ],
  PRODUCT_NOT_READY: [
    "The report is still being generated.",
    "It takes seconds to a minute: send again in a moment.",
  ],
  ASSET_REPORT_GENERATION_FAILED: [
    "The report couldn’t be generated.",
    "See causes in the answer, and create a new report.",
  ],
  DATA_UNAVAILABLE: [
    "An Item’s data couldn’t be had.",
    "See causes in the answer; repair that Item, and create a new report.",
  ],
  ITEM_LOGIN_REQUIRED: [
    "The person has to log in at the bank again.",
    "Let them go through Link’s update mode.",
  ],
  CREDITS_EXHAUSTED: ["The free allocation is used up.", "Waiting won’t help: talk to Plaid."],
  TRIAL_CONNECTION_LIMIT: ["The trial’s Items are used up.", "Waiting won’t help: talk to Plaid."],
  PLANNED_MAINTENANCE: [
    "Plaid is down for maintenance.",
    "Nothing was carried out. status.plaid.com tells when it is over; then send it again.",
  ],
  INTERNAL_SERVER_ERROR: ["Plaid had an error of its own.", ""],
  SANDBOX_ONLY: ["This operation is there in the sandbox alone.", "Use a gateway to the sandbox."],
  NOT_FOUND: ["There is no such operation here.", "Reload this page: the gateway may have been updated."],
};
const LASTING = new Set(["CREDITS_EXHAUSTED", "TRIAL_CONNECTION_LIMIT"]);
const SHARED =
  /^(UNAUTHORIZED_.*|INVALID_API_KEYS|CREDITS_EXHAUSTED|(HOST|ORIGIN)_NOT_ALLOWED|INVALID_ASSET_REPORT_TOKEN|PRODUCT_NOT_READY)$/;
const OF_REPORT = /^(ASSET_REPORT_ERROR|ASSETS_ERROR)$/; // types of errors
const SURELY_NOT = new Set(["API_ERROR PLANNED_MAINTENANCE", "GATEWAY_ERROR UPSTREAM_UNREACHABLE"]);

/** What an error means, and the way out: sentences, or nothing for a code that isn't known. */
export const wayOutOf = (code) => (CODES[code] ?? []).join(" ");

/** What an operation makes, such as "an access token". */
export const thingOf = ({ makes }) => `${/^[aeiou]/.test(makes) ? "an" : "a"} ${makes}`;

/** Tell whether an error would meet every other row of a list, too: it has one report for all of them. */
export const concernsEveryone = (code, type) => SHARED.test(code ?? "") || OF_REPORT.test(type ?? "");

/**
 * How an attempt ended, as far as it tells what Plaid did.
 * @returns done; refused (nothing was carried out); later (the same, and it may pass later); unknown
 */
export function endingOf(operation, reply) {
  if (reply.status !== null && reply.status < 300)
    return hasWhatItShould(operation, reply) ? "done" : "unknown";
  if (reply.redirected) return "refused";
  if (reply.status === null) return "unknown";
  const [type, code] = [textIn(reply, "error_type"), textIn(reply, "error_code")];
  if (SURELY_NOT.has(`${type} ${code}`)) return "later";
  if (reply.status === 429) return LASTING.has(code) ? "refused" : "later";
  return reply.status < 500 && type !== "API_ERROR" ? "refused" : "unknown";
}

// What gives a token has done its work as soon as that can be read, whatever else is wrong with the answer.
function hasWhatItShould(operation, reply) {
  if (operation.pdf) return reply.whole && isPdf(reply);
  if (operation.gives) return Boolean(tokensIn(reply)[operation.gives]);
  return reply.whole && reply.json !== null;
}

/**
 * Explain an answer to a person.
 * @returns kind (done, refused, later, unknown, lost), title, texts: sentences, the way out last
 */
export function explain(operation, reply) {
  const ending = endingOf(operation, reply);
  const [meaning, way] = CODES[textIn(reply, "error_code")] ?? ["", ""];
  if (ending === "done") return { kind: "done", ...whatWasDone(operation, reply) };
  if (ending === "unknown") return unsure(operation, reply, meaning || whatCame(reply));
  if (reply.redirected) {
    return {
      kind: "refused",
      title: "Not carried out",
      texts: [
        "Plaid’s side answered with a redirect, which isn’t followed.",
        "Whoever runs the gateway has to check its upstream address.",
      ],
    };
  }
  const wait = retryAfter(reply.headers);
  return {
    kind: ending,
    title: ending === "later" ? "Not carried out; it may work later" : "Not carried out",
    texts: [
      meaning || `The answer is an error: status ${reply.status}.`,
      saidBy(reply),
      way || textIn(reply, "suggested_action") || "Correct the request: the same one would be refused again.",
      wait === null ? "" : `Wait ${wait} s before the next call.`,
    ].filter(Boolean),
  };
}

// Plaid's own words; the gateway's are those of the table above.
function saidBy(reply) {
  const message = textIn(reply, "error_message");
  return message && textIn(reply, "error_type") !== "GATEWAY_ERROR" ? `Plaid says: “${message}”.` : "";
}

const DONE = { HARMLESS: "Read", IDEMPOTENT: "Removed", CREATES: "Created" };
const CUT = "The answer broke off, but the token had arrived: keep it. What else the answer said is lost.";

function whatWasDone(operation, reply) {
  const texts = reply.json || operation.pdf ? [] : [CUT];
  if (operation.gives) texts.push("Its token is among those in hand, below.");
  return { title: operation.makes === "webhook" ? "Sent" : DONE[operation.replay], texts };
}

function whatCame({ status, whole }) {
  if (status === null) return "No answer came, and the browser can’t tell whether the request had left.";
  if (status < 300) return whole ? "The answer isn’t what it should be." : "The answer broke off.";
  return `The answer is status ${status}, which doesn’t tell what was done.`;
}

// By what a second attempt would do: what it is called, and the way out.
const UNSURE = {
  HARMLESS: ["lost", "Lost", () => ["It is a read, so it is safe to send it again."]],
  IDEMPOTENT: [
    "lost",
    "Nobody can tell",
    () => [
      "It may have been removed. It is safe to send it again:",
      "if it is gone, Plaid says that there is no such token.",
    ],
  ],
  CREATES: [
    "unknown",
    "Unknown: nobody can tell",
    (operation) => [
      `${whatMayBe(operation)}, and Plaid can’t be asked: it neither lists nor finds what was made.`,
      "It isn’t sent again by itself. Decide: ask Plaid’s support, with the request id if there is one,",
      "or send it again and accept that there may be two.",
    ],
  ],
};

function whatMayBe(operation) {
  if (operation.makes === "webhook") return "The webhook may have been sent";
  const thing = thingOf(operation).replace("a", "A");
  return `${thing} may exist that nobody holds${operation.makes.endsWith("token") ? "" : " the token of"}`;
}

function unsure(operation, reply, meaning) {
  const [kind, title, way] = UNSURE[operation.replay];
  return { kind, title, texts: [meaning, saidBy(reply), way(operation).join(" ")].filter(Boolean) };
}
