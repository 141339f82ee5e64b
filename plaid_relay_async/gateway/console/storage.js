// What the browser stores: inputs without secrets, never a token, and the key only for this tab and on request.

import { looksSecret, problemWithAddress } from "./checks.js";

const PLAIN = "plaid-relay-console";
const KEY = "plaid-relay-console-key";

// Storage may be disabled or full, or contain values of an older page. The page then starts without them.
function attempt(access, fallback) {
  try {
    return access() ?? fallback;
  } catch {
    return fallback;
  }
}

/** Return what was stored: address, path, language, and inputs by path and name. */
export function loadPlain(operations) {
  const stored = attempt(() => JSON.parse(localStorage.getItem(PLAIN)), {});
  return {
    address: text(stored.address),
    path: text(stored.path),
    language: text(stored.language),
    inputs: plainInputs(operations, stored.inputs),
  };
}

export function savePlain(operations, { address, path, language, inputs }) {
  const plain = { path, language, inputs: plainInputs(operations, inputs) };
  if (!problemWithAddress(address) && address !== location.origin) plain.address = address;
  attempt(() => localStorage.setItem(PLAIN, JSON.stringify(plain)));
}

// A value of another type, which another version of the page may have stored, is ignored.
const text = (value) => (typeof value === "string" ? value : undefined);

function plainInputs(operations, values) {
  const plain = {};
  for (const { path, inputs } of operations) {
    for (const { name, kind, env } of inputs) {
      const value = values?.[path]?.[name];
      const isValid = kind === "flag" ? value === true : text(value) && !looksSecret(value);
      if (!env && isValid) (plain[path] ??= {})[name] = value;
    }
  }
  return plain;
}

export const loadKey = () => attempt(() => sessionStorage.getItem(KEY), null);
export const saveKey = (key) => attempt(() => sessionStorage.setItem(KEY, key));
export const forgetKey = () => attempt(() => sessionStorage.removeItem(KEY));

/** Return the one-time code of an address that ends with #code=..., and remove it from the address; null without one. */
export function takeCode() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code !== null) history.replaceState(null, "", location.pathname);
  return code;
}
