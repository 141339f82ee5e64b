// The code for a call, in the languages of the code panel. What is secret is read from the environment; all else
// stands in it literally, quoted so that any text survives.

import { looksSecret } from "./checks.js";
import { bodyOf, valueOf } from "./request.js";

const SPLIT = new Set(["tokens", "words"]); // kinds that hold several, with white space between

// A name of the environment, in place of a value.
class Environment {
  constructor(name, { list = false, split = false } = {}) {
    Object.assign(this, { name, list, split });
  }
}

// ------------------------------------------------------------------------------------------- quoting

// What can't be seen, or turns the direction of what is read, is escaped: code has to be what it seems to be.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u00a0\ufeff]/gu;
const hex = (number, digits) => number.toString(16).padStart(digits, "0");
const halves = (text) =>
  [...Array(text.length).keys()].map((at) => `\\u${hex(text.charCodeAt(at), 4)}`).join("");

/** A string as JSON, which is JavaScript, too. */
const quoteJson = (text) => JSON.stringify(text).replace(HIDDEN, halves);

/** A string as Python has it: as JSON, but for characters beyond the first plane. */
const quotePython = (text) =>
  JSON.stringify(text).replace(HIDDEN, (seen) => {
    const code = seen.codePointAt(0);
    return code > 0xffff ? `\\U${hex(code, 8)}` : `\\u${hex(code, 4)}`;
  });

/** Within single quotes of a shell. */
const quoteShell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

// In a here-document that the shell expands, these three mean something.
const inHere = (text) => text.replace(/[\\$`]/g, "\\$&");

// --------------------------------------------------------------------------------- what the code is of

// The variable that an input is read from, if it is secret; a token in the wrong field stays out of the code, too.
function variableOf(input, values) {
  const text = values[input.name];
  return input.env ?? (typeof text === "string" && looksSecret(text) ? input.name.toUpperCase() : undefined);
}

function leafOf(values) {
  return (input) => {
    const name = variableOf(input, values);
    if (name) return new Environment(name, { list: input.list, split: SPLIT.has(input.kind) });
    return valueOf(input, values[input.name]) ?? (input.required ? valueOf(input, input.example) : undefined);
  };
}

/** The variables that the code of a call reads. */
export const variablesOf = (operation, values) => [
  "PLAID_GATEWAY_KEY",
  ...operation.inputs.map((input) => variableOf(input, values)).filter(Boolean),
];

const indent = (text, by) => text.replace(/^(?=.)/gm, " ".repeat(by));

// --------------------------------------------------------------------------------------------- Python

const env = (name) => `os.environ["${name}"]`;

function inPython(value) {
  if (value instanceof Environment) {
    if (value.split) return `${env(value.name)}.split()`;
    return value.list ? `[${env(value.name)}]` : env(value.name);
  }
  if (Array.isArray(value)) return `[${value.map(inPython).join(", ")}]`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "string" ? quotePython(value) : String(value);
}

const WIDTH = 88;

// On one line if it fits, else an argument a line.
function call(head, parts, tail, depth) {
  const line = `${" ".repeat(depth)}${head}(${parts.join(", ")})${tail}`;
  if ([...line].length <= WIDTH) return line;
  const inner = parts.map((part) => `${" ".repeat(depth + 4)}${part},\n`).join("");
  return `${" ".repeat(depth)}${head}(\n${inner}${" ".repeat(depth)})${tail}`;
}

const client = (address, depth) =>
  call(
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
    if (value !== undefined) parts.push(input.named ? `${input.name}=${inPython(value)}` : inPython(value));
    if (operation.pdf && input.env) parts.push('"report.pdf"');
  }
  return parts;
}

// The name of a response by the method that returns it, and what is printed of it. A response with a token or a
// report goes into a file; a token is never printed.
const REPORT_OF = (name) => `${name}.report.asset_report_id, len(${name}.report.items)`;
const PYTHON_ENDS = {
  "relay.create": { name: "made", kept: true },
  "relay.download_pdf": { name: "saved" },
  "asset_report.download_pdf": { name: "saved" },
  "relay.get": { name: "shared", kept: true, shown: REPORT_OF("shared") },
  "relay.refresh": { name: "fresh", kept: true },
  "asset_report.get": { name: "own", kept: true, shown: REPORT_OF("own") },
  "asset_report.create": { name: "made", kept: true },
  "asset_report.refresh": { name: "made", kept: true },
  "asset_report.filter": { name: "made", kept: true },
  "item.exchange_public_token": { name: "linked", kept: true },
  "sandbox.create_public_token": { name: "made", kept: true },
};

function python(operation, values, address) {
  const { name, kept = false, shown = name } = PYTHON_ENDS[operation.python] ?? { name: "answer" };
  const depth = kept ? 8 : 4;
  const named = `${name} = await client.${operation.python}`;
  const sent = `${client(address, depth)}
${call(named, pythonArguments(operation, values), "", depth + 4)}`;
  const saved = `    # Nothing is sent if this file exists: it may hold a token.
    with open("answer.json", "xb", opener=private) as file:
${sent}
        file.write(to_json(${name}))`;
  return `import asyncio
import os

from plaid_relay_async import RelayClient${kept ? ", to_json" : ""}

${kept ? PRIVATE : ""}
async def main() -> None:
${kept ? saved : sent}
    print(${shown})


asyncio.run(main())
`;
}

// What a batch's loop takes of an outcome that is what was asked for, what it does with it, and the file for that.
const BATCHES = {
  "relay.create_many": {
    outcome: "Created",
    holding: "relay_token=token",
    file: "relay-tokens.csv",
    keep: ["rows.writerow([outcome.request.secondary_client_id, token])"],
  },
  "relay.get_many": {
    outcome: "Fetched",
    holding: "response=shared",
    json: true,
    keep: [
      'with open(f"{shared.request_id}.json", "xb", opener=private) as file:',
      "    file.write(to_json(shared))",
    ],
  },
  "relay.get_pdf_many": {
    outcome: "Fetched",
    holding: "response=pdf",
    keep: [
      'with open(f"{pdf.request_id}.pdf", "xb", opener=private) as file:',
      "    file.write(pdf.content)",
    ],
  },
  "relay.refresh_many": {
    outcome: "Refreshed",
    holding: "response=fresh",
    file: "relay-tokens.csv",
    keep: ["rows.writerow([fresh.asset_report_id, fresh.relay_token])"],
  },
  "relay.remove_many": { outcome: "Removed", holding: "", keep: ["print(outcome.request_id)"] },
};

function pythonBulk(operation, values, address) {
  if (!operation.many) return null;
  const { outcome, holding, file, json, keep } = BATCHES[operation.many];
  const creates = operation.many === "relay.create_many";
  const names = [
    outcome,
    "Failed",
    "RelayClient",
    ...(creates ? ["RelayCreateRequest"] : []),
    "Unknown",
    ...(json ? ["to_json"] : []),
  ].sort();
  const lines = batch(operation, values, address, file ? 8 : 4);
  const loop = `${lines}
    async for outcome in outcomes:
        match outcome:
            case ${outcome}(${holding}):
${indent(keep.join("\n"), 16)}
            case Failed() | Unknown():
                print(${creates ? "outcome.request.secondary_client_id, " : ""}outcome.error)
print(outcomes.result)`;
  const whole = file
    ? `with open("${file}", "x", newline="", buffering=1, opener=private) as file:\n    rows = csv.writer(file)\n${indent(loop, 4)}`
    : loop;
  return `import asyncio
${file ? "import csv\n" : ""}import os

from plaid_relay_async import ${names.join(", ")}

${file || json || operation.pdf ? PRIVATE : ""}
async def main() -> None:
${inputOf(operation, values)}
${indent(whole, 4)}


asyncio.run(main())
`;
}

const PRIVATE = `
def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # for nobody else to read

`;

// The head of the loop, written without its indentation; `depth` is what it will have.
function batch(operation, values, address, depth) {
  const told = [`base_url=${quotePython(address)}`, `gateway_key=${env("PLAID_GATEWAY_KEY")}`];
  const open = call("RelayClient", told, " as client,", depth + 4);
  const many = `client.${operation.many}(${batchArguments(operation, values)}) as outcomes,`;
  return `async with (\n${open.replace(new RegExp(`^ {${depth}}`, "gm"), "")}\n    ${many}\n):`;
}

function inputOf(operation, values) {
  if (operation.many !== "relay.create_many") return '    relay_tokens = os.environ["RELAY_TOKENS"].split()';
  const [, partner, webhook] = operation.inputs.map(leafOf(values));
  const parts = [`[${env("REPORT_TOKEN")}]`, "partners"];
  if (webhook !== undefined) parts.push(`webhook=${inPython(webhook)}`);
  return `    partners = [${inPython(partner)}]  # and the others
${call("requests = RelayCreateRequest.fan_out", parts, "", 4)}`;
}

function batchArguments(operation, values) {
  if (operation.many === "relay.create_many") return "requests";
  const leaf = leafOf(values);
  const named = operation.inputs.filter((each) => each.named && leaf(each) !== undefined);
  return ["relay_tokens", ...named.map((each) => `${each.name}=${inPython(leaf(each))}`)].join(", ");
}

// ----------------------------------------------------------------------------------------------- curl

function inHereJson(value, depth = 0) {
  if (value instanceof Environment) {
    if (value.split) return `[$(printf '"%s",' $${value.name} | sed 's/,$//')]`;
    return value.list ? `["$${value.name}"]` : `"$${value.name}"`;
  }
  if (Array.isArray(value)) return `[${value.map((each) => inHereJson(each)).join(", ")}]`;
  // At its prompt an older shell may take an exclamation mark for a command of its history.
  if (typeof value === "string") return inHere(quoteJson(value).replaceAll("!", "\\u0021"));
  if (typeof value !== "object") return String(value);
  const pad = " ".repeat(depth + 2);
  const lines = Object.entries(value).map(
    ([name, each]) => `${pad}"${name}": ${inHereJson(each, depth + 2)}`,
  );
  return lines.length ? `{\n${lines.join(",\n")}\n${" ".repeat(depth)}}` : "{}";
}

function curl(operation, values, address) {
  const needed = variablesOf(operation, values).map((name) => `"\${${name}:?}"`);
  // The comments do without apostrophes: a shell at its prompt may not take them for comments.
  return `# Arguments can be seen by others, so the key and the tokens are not among them.
# No answer is written over another, which may hold a token.
(
: ${needed.join(" ")}
umask 077
set -C
curl ${quoteShell(address + operation.path)} \\
  --globoff --silent --show-error --write-out '%{stderr}%{http_code}\\n' \\
  --header @/dev/fd/3 --header 'Content-Type: application/json' \\
  --data-binary @- 3<<KEY <<BODY >${operation.pdf ? "report.pdf" : "answer.json"}
Authorization: Bearer $PLAID_GATEWAY_KEY
KEY
${inHereJson(bodyOf(operation, leafOf(values)))}
BODY
)
`;
}

// ----------------------------------------------------------------------------------------- TypeScript

function inScript(value, depth) {
  if (value instanceof Environment) {
    if (value.split) return `${value.name}.trim().split(/\\s+/)`;
    return value.list ? `[${value.name}]` : value.name;
  }
  if (Array.isArray(value)) return `[${value.map((each) => inScript(each, depth)).join(", ")}]`;
  if (typeof value !== "object") return typeof value === "string" ? quoteJson(value) : String(value);
  const pad = " ".repeat(depth + 2);
  const lines = Object.entries(value).map(([name, each]) => `${pad}${name}: ${inScript(each, depth + 2)},\n`);
  return `{\n${lines.join("")}${" ".repeat(depth)}}`;
}

function typescript(operation, values, address) {
  const body = bodyOf(operation, leafOf(values));
  const names = variablesOf(operation, values);
  const careful =
    operation.replay === "CREATES"
      ? "// After a 5xx, or no answer, nobody can tell what was made: don't simply repeat it.\n"
      : "";
  return `import { open } from "node:fs/promises";
import { env } from "node:process";

const { ${names.join(", ")} } = env;
if (${names.map((name) => `!${name}`).join(" || ")}) {
  throw new Error("set ${names.join(" and ")}");
}

// Nothing is sent if this file exists: it may hold a token.
const file = await open("${operation.pdf ? "report.pdf" : "answer.json"}", "wx", 0o600);
${careful}const answer = await fetch(${quoteJson(address + operation.path)}, {
  method: "POST",
  redirect: "error",
  headers: {
    Authorization: \`Bearer \${PLAID_GATEWAY_KEY}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${inScript(body, 2)}),
});
if (!answer.ok) {
  throw new Error(\`\${answer.status} \${await answer.text()}\`);
}
await file.writeFile(new Uint8Array(await answer.arrayBuffer()));
await file.close();
console.log(answer.status);
`;
}

// ------------------------------------------------------------------------------------------ all of them

export const LANGUAGES = [
  { name: "python", title: "Python", write: python },
  { name: "bulk", title: "Python bulk", write: pythonBulk },
  { name: "curl", title: "curl", write: curl },
  { name: "typescript", title: "TypeScript", write: typescript },
];

/**
 * The code for a call.
 * @param values the plain inputs by name: text, or true for a switch; tokens aren't asked for
 * @returns the code, or null where the package has no such method
 */
export function snippet(language, operation, values, address) {
  const { write } = LANGUAGES.find(({ name }) => name === language) ?? LANGUAGES[0];
  return write(operation, values, address.replace(/(?<!\/)\/+$/, ""));
}
