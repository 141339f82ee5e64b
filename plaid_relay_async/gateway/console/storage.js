// What the browser keeps: plain inputs, never a token, and a key only for this tab, if that was asked for.

import { looksSecret, problemWithAddress } from "./checks.js";

const PLAIN = "plaid-relay-console";
const KEY = "plaid-relay-console-key";

// Storage may be switched off, full, or hold what an older page left: then the page starts afresh.
function attempt(work, otherwise) {
  try {
    return work() ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** What was kept: address, path, language, and inputs by path and name. */
export function recall(operations) {
  const kept = attempt(() => JSON.parse(localStorage.getItem(PLAIN)), {});
  const text = (value) => (typeof value === "string" ? value : undefined);
  return {
    address: text(kept.address),
    path: text(kept.path),
    language: text(kept.language),
    inputs: plainInputs(operations, kept.inputs ?? {}),
  };
}

export function keep(operations, { address, path, language, inputs }) {
  const kept = { path, language, inputs: plainInputs(operations, inputs) };
  if (!problemWithAddress(address) && address !== location.origin) kept.address = address;
  attempt(() => localStorage.setItem(PLAIN, JSON.stringify(kept)));
}

function plainInputs(operations, inputs) {
  const plain = {};
  for (const { path, inputs: known } of operations) {
    for (const { name, env } of known) {
      const value = inputs[path]?.[name];
      const may = value === true || (typeof value === "string" && value && !looksSecret(value));
      if (!env && may) (plain[path] ??= {})[name] = value;
    }
  }
  return plain;
}

export const recallKey = () => attempt(() => sessionStorage.getItem(KEY), null);
export const keepKey = (key) => attempt(() => sessionStorage.setItem(KEY, key));
export const forgetKey = () => attempt(() => sessionStorage.removeItem(KEY));

/** Take what the address brought, such as #key=...&report_token=..., out of it and out of the history. */
export function takeFromAddress() {
  const brought = new URLSearchParams(location.hash.slice(1));
  if (location.hash) history.replaceState(null, "", location.pathname);
  return brought;
}
