// Converts the values of the form into the body of a request.

import { linesOf } from "./checks.js";

/** Return the value of an input as JSON represents it, or undefined if the input is empty. */
export function valueOf(input, text) {
  if (input.kind === "flag") return text ? true : undefined;
  if (!text?.trim()) return undefined;
  if (input.kind === "number") return Number(text);
  if (input.kind === "identifiers" || input.kind === "tokens") return linesOf(text);
  return input.list ? [text] : text;
}

/**
 * Return the body of a request, in the order of the inputs.
 * @param operation one of OPERATIONS
 * @param leafOf returns the value of an input, or undefined to omit it
 */
export function bodyOf(operation, leafOf) {
  const body = {};
  for (const input of operation.inputs) {
    const value = leafOf(input);
    if (value === undefined) continue;
    const target = input.within ? (body[input.within] ??= {}) : body;
    target[input.name] = value;
  }
  return { ...body, ...operation.fixed };
}
