// One attempt on the wire, and what came of it.

const NAMES = ["relay_token", "asset_report_token", "access_token", "public_token"];
const TOKEN = new RegExp(`"(${NAMES.join("|")})"\\s*:\\s*"([^"\\\\]+)"`, "g");

/**
 * Send one request to this page's own gateway; never raises, never repeats.
 * @returns status (null if none came), headers, bytes, whole (whether all of the body came), seconds
 */
export async function send(path, body, key, signal) {
  const begun = performance.now();
  const reply = {
    status: null,
    headers: new Headers(),
    bytes: new Uint8Array(),
    whole: false,
    redirected: false,
  };
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}` },
      body: JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "manual",
      signal,
    });
    reply.redirected = response.type === "opaqueredirect";
    reply.status = response.status || null;
    reply.headers = response.headers;
    await readInto(reply, response);
  } catch {
    // The browser doesn't tell how far it came: not even whether anything left.
  }
  reply.seconds = (performance.now() - begun) / 1000;
  return { ...reply, ...readJson(reply) };
}

// Piece by piece, for a token may be in the part that arrives of an answer that breaks off. Where the end comes
// together with the beginning, the browser may drop both; by XMLHttpRequest that happens more often, not less.
async function readInto(reply, response) {
  const pieces = [];
  try {
    for (const reader = response.body?.getReader(); reader;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
    }
    reply.whole = true;
  } finally {
    reply.bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
  }
}

function readJson({ bytes, headers }) {
  if (headers.get("Content-Type")?.startsWith("application/pdf")) return { text: "", json: null };
  const text = new TextDecoder().decode(bytes);
  try {
    const json = JSON.parse(text);
    return { text, json: json !== null && typeof json === "object" && !Array.isArray(json) ? json : null };
  } catch {
    return { text, json: null };
  }
}

export const isPdf = (reply) => reply.headers.get("Content-Type")?.startsWith("application/pdf") ?? false;

/** A text of an answer's JSON by its name, or null where there is none, or something else than a text. */
export function textIn(reply, name) {
  const value = reply.json?.[name];
  return typeof value === "string" ? value : null;
}

export const requestIdOf = (reply) =>
  textIn(reply, "request_id") ?? reply.headers.get("Plaid-Request-ID") ?? reply.headers.get("X-Request-ID");

/** The tokens in an answer by name, also in one that broke off. */
export function tokensIn(reply) {
  const found = Object.fromEntries([...reply.text.matchAll(TOKEN)].map(([, name, value]) => [name, value]));
  for (const name of NAMES) if (textIn(reply, name)) found[name] = textIn(reply, name);
  return found;
}

// A date of HTTP, for Date.parse takes almost anything for one ("-5" is May), and one without a zone for local time.
function dateOf(text) {
  const date = /^[a-z]{3,9},? .*\d\d:\d\d:\d\d/i.test(text ?? "");
  return date ? Date.parse(text.endsWith("GMT") ? text : `${text} GMT`) : NaN;
}

/** The seconds that a server asks to wait (RFC 9110, 10.2.3), or null. */
export function retryAfter(headers) {
  const said = headers.get("Retry-After")?.trim();
  if (!said) return null;
  if (/^\d+(\.\d+)?$/.test(said)) return Number(said);
  // Held against the server's own clock, where it tells.
  const seconds = (dateOf(said) - (dateOf(headers.get("Date")) || Date.now())) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}
