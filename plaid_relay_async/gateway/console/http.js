// Sends one request and reads its response.

import { NEXT } from "./operations.js";

export const TOKEN_FIELDS = Object.keys(NEXT);
const TOKEN = new RegExp(`"(${TOKEN_FIELDS.join("|")})"\\s*:\\s*"([^"\\\\]+)"`, "g");

/**
 * Send one request to this page's own gateway. Never throws, and never repeats the request.
 * @returns status (null if no response arrived), headers, bytes, complete (whether the body arrived to its end),
 *   redirected, seconds, text, json (null unless the body is a JSON object)
 */
export async function send(path, body, key, signal) {
  const startedAt = performance.now();
  const response = {
    status: null,
    headers: new Headers(),
    bytes: new Uint8Array(),
    complete: false,
    redirected: false,
  };
  try {
    const fetched = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
      body: JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "manual",
      signal,
    });
    response.redirected = fetched.type === "opaqueredirect";
    response.status = fetched.status || null;
    response.headers = fetched.headers;
    await readBody(response, fetched);
  } catch {
    // The browser does not say how far the request got, not even whether it was sent.
  }
  response.seconds = (performance.now() - startedAt) / 1000;
  return { ...response, ...parseJson(response) };
}

// The body is read in chunks, because a truncated response may contain a token in the part that arrives. If the end
// of the connection arrives together with the first chunk, the browser may drop both. XMLHttpRequest drops them more
// often.
async function readBody(response, fetched) {
  const chunks = [];
  try {
    for (const reader = fetched.body?.getReader(); reader;) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
    }
    response.complete = true;
  } finally {
    response.bytes = new Uint8Array(await new Blob(chunks).arrayBuffer());
  }
}

function parseJson({ bytes, headers }) {
  if (headers.get("Content-Type")?.startsWith("application/pdf")) return { text: "", json: null };
  const text = new TextDecoder().decode(bytes);
  try {
    const json = JSON.parse(text);
    return { text, json: json !== null && typeof json === "object" && !Array.isArray(json) ? json : null };
  } catch {
    return { text, json: null };
  }
}

export const isPdf = (response) =>
  response.headers.get("Content-Type")?.startsWith("application/pdf") ?? false;

/** Return a string member of a response's JSON, or null if it is missing or has another type. */
export function textIn(response, name) {
  const value = response.json?.[name];
  return typeof value === "string" ? value : null;
}

export const requestIdOf = (response) =>
  textIn(response, "request_id") ??
  response.headers.get("Plaid-Request-ID") ??
  response.headers.get("X-Request-ID");

/** Return the tokens in a response by field name. A truncated response is searched as text. */
export function tokensIn(response) {
  const matches = [...response.text.matchAll(TOKEN)];
  const tokens = Object.fromEntries(matches.map(([, name, value]) => [name, value]));
  for (const name of TOKEN_FIELDS) if (textIn(response, name)) tokens[name] = textIn(response, name);
  return tokens;
}

// Date.parse accepts almost any text as a date ("-5" is in May), and reads a date without a time zone as local time.
// An HTTP date is in GMT.
function parseHttpDate(text) {
  const isDate = /^[a-z]{3,9},? .*\d\d:\d\d:\d\d/i.test(text ?? "");
  return isDate ? Date.parse(text.endsWith("GMT") ? text : `${text} GMT`) : NaN;
}

/** Return the seconds that a server's Retry-After asks to wait (RFC 9110, 10.2.3), or null. */
export function parseRetryAfter(headers) {
  const value = headers.get("Retry-After")?.trim();
  if (!value) return null;
  if (/^\d+(\.\d+)?$/.test(value)) return Number(value);
  // A date is compared with the server's own clock if the response has a Date header.
  const seconds = (parseHttpDate(value) - (parseHttpDate(headers.get("Date")) || Date.now())) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}
