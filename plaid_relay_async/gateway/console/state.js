// What the page knows. Of this only what `storage` takes outlives the page.

import { bodyOf, valueOf } from "./request.js";
import { OPERATIONS } from "./operations.js";
import { keep } from "./storage.js";

export const state = {
  key: "",
  address: "", // for the code; empty is this page's own
  path: "/credit/relay/create", // of the operation that is shown, or "many"
  language: "python",
  served: [], // operations
  environment: undefined, // production, sandbox, null (the gateway forwards to something else), or not told
  inputs: {}, // plain ones, by path and name
  secrets: {}, // tokens, by the variable of the code
  unsaved: new Set(), // functions that tell whether something would be lost by leaving
};

export const addressOf = () => state.address || location.origin;
export const save = () => keep(OPERATIONS, state);

export const textOf = (operation, input) =>
  input.env
    ? (state.secrets[input.env] ?? "")
    : (state.inputs[operation.path]?.[input.name] ?? (input.preset ? input.example : ""));

export function setText(operation, input, text) {
  if (input.env) state.secrets[input.env] = text;
  else (state.inputs[operation.path] ??= {})[input.name] = text;
}

/** The plain inputs of an operation by name. */
export const plainOf = (operation) =>
  Object.fromEntries(
    operation.inputs.filter(({ env }) => !env).map((input) => [input.name, textOf(operation, input)]),
  );

/** The body to send, tokens and all. */
export const bodyToSend = (operation) =>
  bodyOf(operation, (input) => valueOf(input, textOf(operation, input)));

// ------------------------------------------------------------- what a repeat would make a second time

const made = new Map();

function nameOf(operation, body) {
  // A webhook makes no other thing of it.
  const { webhook, ...rest } = body;
  return JSON.stringify([operation.path, rest]);
}

/** Note that something was made, or that nobody can tell. */
export const note = (operation, body, kind) => {
  if (operation.replay === "CREATES") made.set(nameOf(operation, body), kind);
};

/** Whether the same was made on this page: "done", "unknown", or undefined. */
export const madeBefore = (operation, body) => made.get(nameOf(operation, body));
