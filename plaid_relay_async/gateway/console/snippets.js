// Generates the code for a call, in each language of the code panel. Secrets are read from the environment. All other
// values are literals, quoted so that any text is preserved.

import { looksSecret } from "./checks.js";
import { bodyOf, valueOf } from "./request-body.js";

const SPLIT = new Set(["tokens", "identifiers"]); // kinds with several values, separated by whitespace

// An environment variable in place of a value.
class Variable {
  constructor(name, { list = false, split = false } = {}) {
    Object.assign(this, { name, list, split });
  }
}

// ------------------------------------------------------------------------------------------- quoting

// Invisible characters, and those that change the direction of the text, are escaped: the code must be what it seems
// to be.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u00a0\ufeff]/gu;
const hex = (number, digits) => number.toString(16).padStart(digits, "0");
const escapeCodeUnits = (text) =>
  [...Array(text.length).keys()].map((index) => `\\u${hex(text.charCodeAt(index), 4)}`).join("");

/** Quote a string for JSON, which is also valid JavaScript. */
const quoteJson = (text) => JSON.stringify(text).replace(HIDDEN, escapeCodeUnits);

/** Quote a string for Python: as in JSON, except for characters beyond the Basic Multilingual Plane. */
const quotePython = (text) =>
  JSON.stringify(text).replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    return code > 0xffff ? `\\U${hex(code, 8)}` : `\\u${hex(code, 4)}`;
  });

/** Quote a string for a shell, in single quotes. */
const quoteShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// Escape the three characters that the shell expands in a here-document.
const escapeHeredoc = (text) => text.replace(/[\\$`]/g, "\\$&");

// --------------------------------------------------------------------------------- values and variables

// Return the environment variable for an input if it is secret. A token in another field is kept out of the code, too.
function variableOf(input, values) {
  const text = values[input.name];
  return input.env ?? (typeof text === "string" && looksSecret(text) ? input.name.toUpperCase() : undefined);
}

function leafOf(values) {
  return (input) => {
    const name = variableOf(input, values);
    if (name) return new Variable(name, { list: input.list, split: SPLIT.has(input.kind) });
    return valueOf(input, values[input.name]) ?? (input.required ? valueOf(input, input.example) : undefined);
  };
}

/** Return the environment variables that the code of a call reads. */
export const variablesOf = (operation, values) => [
  "PLAID_GATEWAY_KEY",
  ...operation.inputs.map((input) => variableOf(input, values)).filter(Boolean),
];

const fileFor = (operation) => (operation.returns === "pdf" ? "report.pdf" : "response.json");
const indent = (text, width) => text.replace(/^(?=.)/gm, " ".repeat(width));

// --------------------------------------------------------------------------------------------- Python

const env = (name) => `os.environ["${name}"]`;

function toPython(value) {
  if (value instanceof Variable) {
    if (value.split) return `${env(value.name)}.split()`;
    return value.list ? `[${env(value.name)}]` : env(value.name);
  }
  if (Array.isArray(value)) return `[${value.map(toPython).join(", ")}]`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "string" ? quotePython(value) : String(value);
}

const WIDTH = 88;

// Write a call on one line if it fits, otherwise with each argument on a separate line.
function formatCall(head, parts, tail, depth) {
  const line = `${" ".repeat(depth)}${head}(${parts.join(", ")})${tail}`;
  if ([...line].length <= WIDTH) return line;
  const inner = parts.map((part) => `${" ".repeat(depth + 4)}${part},\n`).join("");
  return `${" ".repeat(depth)}${head}(\n${inner}${" ".repeat(depth)})${tail}`;
}

const client = (address, depth) =>
  formatCall(
    "async with RelayClient",
    [`base_url=${quotePython(address)}`, `gateway_key=${env("PLAID_GATEWAY_KEY")}`],
    " as client:",
    depth,
  );

function pythonArguments(operation, values) {
  const leaf = leafOf(values);
  const parts = [];
  for (const input of operation.inputs) {
    const value = leaf(input);
    if (value !== undefined) parts.push(input.required ? toPython(value) : `${input.name}=${toPython(value)}`);
    if (operation.returns === "pdf" && input.env) parts.push('"report.pdf"');
  }
  return parts;
}

// A response with a token or a report is saved to a file. A token is never printed.
function python(operation, values, address) {
  const isReport = operation.returns === "report";
  const saved = isReport || operation.issues !== null;
  const printed = isReport ? "response.report.asset_report_id, len(response.report.items)" : "response";
  const depth = saved ? 8 : 4;
  const awaited = `response = await client.${operation.method}`;
  const request = `${client(address, depth)}
${formatCall(awaited, pythonArguments(operation, values), "", depth + 4)}`;
  const requestAndSave = `    # If this file exists, nothing is sent, because the file may contain a token.
    with open("response.json", "xb", opener=private) as file:
${request}
        file.write(to_json(response))`;
  return `import asyncio
import os

from plaid_relay_async import RelayClient${saved ? ", to_json" : ""}

${saved ? PRIVATE : ""}
async def main() -> None:
${saved ? requestAndSave : request}
    print(${printed})


asyncio.run(main())
`;
}

// By batch method: the class of a successful outcome, the pattern that it is matched with, how it is saved, and the
// file for it.
const BATCHES = {
  "relay.create_many": {
    outcome: "Created",
    pattern: "relay_token=token",
    file: "relay-tokens.csv",
    save: ["rows.writerow([outcome.request.secondary_client_id, token])"],
  },
  "relay.get_many": {
    outcome: "Fetched",
    pattern: "response=report",
    json: true,
    save: [
      'with open(f"{report.request_id}.json", "xb", opener=private) as file:',
      "    file.write(to_json(report))",
    ],
  },
  "relay.get_pdf_many": {
    outcome: "Fetched",
    pattern: "response=pdf",
    save: [
      'with open(f"{pdf.request_id}.pdf", "xb", opener=private) as file:',
      "    file.write(pdf.content)",
    ],
  },
  "relay.refresh_many": {
    outcome: "Refreshed",
    pattern: "response=refreshed",
    file: "relay-tokens.csv",
    save: ["rows.writerow([refreshed.asset_report_id, refreshed.relay_token])"],
  },
  "relay.remove_many": { outcome: "Removed", pattern: "", save: ["print(outcome.request_id)"] },
};

function pythonBulk(operation, values, address) {
  if (!operation.batch_method) return null;
  const { outcome, pattern, file, json, save } = BATCHES[operation.batch_method];
  const isCreate = operation.batch_method === "relay.create_many";
  const names = [
    outcome,
    "Failed",
    "RelayClient",
    ...(isCreate ? ["RelayCreateRequest"] : []),
    "Unknown",
    ...(json ? ["to_json"] : []),
  ].sort();
  const head = batchHead(operation, values, address, file ? 8 : 4);
  const loop = `${head}
    async for outcome in outcomes:
        match outcome:
            case ${outcome}(${pattern}):
${indent(save.join("\n"), 16)}
            case Failed() | Unknown():
                print(${isCreate ? "outcome.request.secondary_client_id, " : ""}outcome.error)
print(outcomes.result)`;
  const block = file
    ? `with open("${file}", "x", newline="", buffering=1, opener=private) as file:\n    rows = csv.writer(file)\n${indent(loop, 4)}`
    : loop;
  return `import asyncio
${file ? "import csv\n" : ""}import os

from plaid_relay_async import ${names.join(", ")}

${file || json || operation.returns === "pdf" ? PRIVATE : ""}
async def main() -> None:
${batchInput(operation, values)}
${indent(block, 4)}


asyncio.run(main())
`;
}

const PRIVATE = `
def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # readable and writable by the owner only

`;

// Return the head of the loop without indentation; it is formatted for the indentation `depth`.
function batchHead(operation, values, address, depth) {
  const parts = [`base_url=${quotePython(address)}`, `gateway_key=${env("PLAID_GATEWAY_KEY")}`];
  const opened = formatCall("RelayClient", parts, " as client,", depth + 4);
  const many = `client.${operation.batch_method}(${batchArguments(operation, values)}) as outcomes,`;
  return `async with (\n${opened.replace(new RegExp(`^ {${depth}}`, "gm"), "")}\n    ${many}\n):`;
}

function batchInput(operation, values) {
  if (operation.batch_method !== "relay.create_many") return '    relay_tokens = os.environ["RELAY_TOKENS"].split()';
  const [, partner, webhook] = operation.inputs.map(leafOf(values));
  const parts = [`[${env("REPORT_TOKEN")}]`, "partners"];
  if (webhook !== undefined) parts.push(`webhook=${toPython(webhook)}`);
  return `    partners = [${toPython(partner)}]  # and other partners
${formatCall("requests = RelayCreateRequest.fan_out", parts, "", 4)}`;
}

function batchArguments(operation, values) {
  if (operation.batch_method === "relay.create_many") return "requests";
  const leaf = leafOf(values);
  const named = operation.inputs.filter((input) => !input.required && leaf(input) !== undefined);
  return ["relay_tokens", ...named.map((input) => `${input.name}=${toPython(leaf(input))}`)].join(", ");
}

// ----------------------------------------------------------------------------------------------- curl

function toHeredocJson(value, depth = 0) {
  if (value instanceof Variable) {
    if (value.split) return `[$(printf '"%s",' $${value.name} | sed 's/,$//')]`;
    return value.list ? `["$${value.name}"]` : `"$${value.name}"`;
  }
  if (Array.isArray(value)) return `[${value.map((item) => toHeredocJson(item)).join(", ")}]`;
  // An older interactive shell may expand an exclamation mark from its history.
  if (typeof value === "string") return escapeHeredoc(quoteJson(value).replaceAll("!", "\\u0021"));
  if (typeof value !== "object") return String(value);
  const pad = " ".repeat(depth + 2);
  const lines = Object.entries(value).map(
    ([name, item]) => `${pad}"${name}": ${toHeredocJson(item, depth + 2)}`,
  );
  return lines.length ? `{\n${lines.join(",\n")}\n${" ".repeat(depth)}}` : "{}";
}

function curl(operation, values, address) {
  const needed = variablesOf(operation, values).map((name) => `"\${${name}:?}"`);
  // The comments contain no apostrophe, because an interactive shell may not treat them as comments.
  return `# Other users can see the arguments of a command, so the key and the tokens are not among them.
# An existing response is never overwritten, because it may contain a token.
(
: ${needed.join(" ")}
umask 077
set -C
curl ${quoteShell(address + operation.path)} \\
  --globoff --silent --show-error --write-out '%{stderr}%{http_code}\\n' \\
  --header @/dev/fd/3 --header 'Content-Type: application/json' \\
  --data-binary @- 3<<KEY <<BODY >${fileFor(operation)}
Authorization: Bearer $PLAID_GATEWAY_KEY
KEY
${toHeredocJson(bodyOf(operation, leafOf(values)))}
BODY
)
`;
}

// ----------------------------------------------------------------------------------------- TypeScript

function toScript(value, depth) {
  if (value instanceof Variable) {
    if (value.split) return `${value.name}.trim().split(/\\s+/)`;
    return value.list ? `[${value.name}]` : value.name;
  }
  if (Array.isArray(value)) return `[${value.map((item) => toScript(item, depth)).join(", ")}]`;
  if (typeof value !== "object") return typeof value === "string" ? quoteJson(value) : String(value);
  const pad = " ".repeat(depth + 2);
  const lines = Object.entries(value).map(([name, item]) => `${pad}${name}: ${toScript(item, depth + 2)},\n`);
  return `{\n${lines.join("")}${" ".repeat(depth)}}`;
}

function typescript(operation, values, address) {
  const body = bodyOf(operation, leafOf(values));
  const names = variablesOf(operation, values);
  const warning =
    operation.idempotency === "NON_IDEMPOTENT"
      ? "// After a 5xx or a lost response the outcome is unknown: do not repeat the request automatically.\n"
      : "";
  return `import { open } from "node:fs/promises";
import { env } from "node:process";

const { ${names.join(", ")} } = env;
if (${names.map((name) => `!${name}`).join(" || ")}) {
  throw new Error("set ${names.join(" and ")}");
}

// If this file exists, nothing is sent, because the file may contain a token.
const file = await open("${fileFor(operation)}", "wx", 0o600);
${warning}const response = await fetch(${quoteJson(address + operation.path)}, {
  method: "POST",
  redirect: "error",
  headers: {
    Authorization: \`Bearer \${PLAID_GATEWAY_KEY}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${toScript(body, 2)}),
});
if (!response.ok) {
  throw new Error(\`\${response.status} \${await response.text()}\`);
}
await file.writeFile(new Uint8Array(await response.arrayBuffer()));
await file.close();
console.log(response.status);
`;
}

// ------------------------------------------------------------------------------------------ languages

export const LANGUAGES = [
  { name: "python", title: "Python", write: python },
  { name: "bulk", title: "Python bulk", write: pythonBulk },
  { name: "curl", title: "curl", write: curl },
  { name: "typescript", title: "TypeScript", write: typescript },
];

/**
 * Return the code for a call.
 * @param values the inputs without secrets, by name: a text, or true for a flag
 * @returns the code, or null if the package has no such method
 */
export function snippet(language, operation, values, address) {
  const { write } = LANGUAGES.find(({ name }) => name === language) ?? LANGUAGES[0];
  return write(operation, values, address.replace(/(?<!\/)\/+$/, ""));
}
