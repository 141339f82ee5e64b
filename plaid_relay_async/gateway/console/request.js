// From what was filled in to the body of a request.

import { linesOf } from "./checks.js";

/** The value of an input as JSON has it, or undefined where nothing was given. */
export function valueOf(input, text) {
  if (input.kind === "flag") return text ? true : undefined;
  if (!text?.trim()) return undefined;
  if (input.kind === "days") return Number(text);
  if (input.kind === "words" || input.kind === "tokens") return linesOf(text);
  return input.list ? [text] : text;
}

/**
 * The body of a request, in the order of the inputs.
 * @param operation one of OPERATIONS
 * @param leaf gives the value for an input, or undefined to leave it out
 */
export function bodyOf(operation, leaf) {
  const body = {};
  for (const input of operation.inputs) {
    const value = leaf(input);
    if (value === undefined) continue;
    const into = input.within ? (body[input.within] ??= {}) : body;
    into[input.name] = value;
  }
  return { ...body, ...operation.fixed };
}
