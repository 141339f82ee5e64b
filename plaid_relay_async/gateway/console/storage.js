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
  return {
    address: text(kept.address),
    path: text(kept.path),
    language: text(kept.language),
    inputs: plainInputs(operations, kept.inputs),
  };
}

export function keep(operations, { address, path, language, inputs }) {
  const kept = { path, language, inputs: plainInputs(operations, inputs) };
  if (!problemWithAddress(address) && address !== location.origin) kept.address = address;
  attempt(() => localStorage.setItem(PLAIN, JSON.stringify(kept)));
}

// A value of another type than the page writes, as another version of it may have done, counts as none.
const text = (value) => (typeof value === "string" ? value : undefined);

function plainInputs(operations, inputs) {
  const plain = {};
  for (const { path, inputs: known } of operations) {
    for (const { name, kind, env } of known) {
      const value = inputs?.[path]?.[name];
      const fits = kind === "flag" ? value === true : text(value) && !looksSecret(value);
      if (!env && fits) (plain[path] ??= {})[name] = value;
    }
  }
  return plain;
}

export const recallKey = () => attempt(() => sessionStorage.getItem(KEY), null);
export const keepKey = (key) => attempt(() => sessionStorage.setItem(KEY, key));
export const forgetKey = () => attempt(() => sessionStorage.removeItem(KEY));

/** The one-time code that the address brought as #code=..., which is taken out of it; null without one. */
export function takeCode() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code !== null) history.replaceState(null, "", location.pathname);
  return code;
}
