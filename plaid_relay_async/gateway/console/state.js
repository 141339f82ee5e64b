// The state of the page. Only what `storage` accepts outlives it.

import { bodyOf, valueOf } from "./request-body.js";
import { OPERATIONS } from "./operations.js";
import { savePlain } from "./storage.js";

export const state = {
  key: "",
  address: "", // for the code; empty means this page's own gateway
  path: "/credit/relay/create", // of the operation that is shown, or "many"
  language: "python",
  served: [], // the operations that the gateway serves
  environment: undefined, // production, sandbox, null (the gateway forwards to another address), or not reported
  inputs: {}, // inputs without secrets, by path and name
  secrets: {}, // tokens, by the environment variable that the code reads
  unsaved: new Set(), // functions that return whether leaving the page would lose something
};

export const addressOf = () => state.address || location.origin;
export const save = () => savePlain(OPERATIONS, state);

export const textOf = (operation, input) =>
  input.env
    ? (state.secrets[input.env] ?? "")
    : (state.inputs[operation.path]?.[input.name] ?? (input.preset ? input.example : ""));

export function setText(operation, input, text) {
  if (input.env) state.secrets[input.env] = text;
  else (state.inputs[operation.path] ??= {})[input.name] = text;
}

/** Return the inputs of an operation that aren't secret, by name. */
export const plainInputsOf = (operation) =>
  Object.fromEntries(
    operation.inputs.filter(({ env }) => !env).map((input) => [input.name, textOf(operation, input)]),
  );

/** Return the body to send, including tokens. */
export const bodyToSend = (operation) =>
  bodyOf(operation, (input) => valueOf(input, textOf(operation, input)));

// ----------------------------------------------------------------------------- calls that must not be repeated

// The calls of non-idempotent operations that were made on this page: "succeeded" or "unknown". Repeating one of
// them would create a second token or report.
const calls = new Map();

function callId(operation, body) {
  // The webhook does not change what is created.
  const { webhook, ...rest } = body;
  return JSON.stringify([operation.path, rest]);
}

/** Record that a call created something, or that its outcome is unknown. */
export const recordCall = (operation, body, kind) => {
  if (operation.idempotency === "NON_IDEMPOTENT") calls.set(callId(operation, body), kind);
};

/** Return the result of the same call earlier on this page: "succeeded", "unknown", or undefined. */
export const earlierCall = (operation, body) => calls.get(callId(operation, body));
