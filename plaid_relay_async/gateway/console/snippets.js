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

const client = (address, tail) =>
  call(
    "async with RelayClient",
    [`base_url=${quotePython(address)}`, `gateway_key=${env("PLAID_GATEWAY_KEY")}`],
    tail,
    4,
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

// What the last lines do with an answer, by the method that gave it: never print a token.
const PYTHON_ENDS = {
  "relay.create": ["made", "# made.relay_token is a secret: keep it.", "made"],
  "relay.download_pdf": ["saved", null, "saved"],
  "asset_report.download_pdf": ["saved", null, "saved"],
  "relay.get": ["shared", null, "shared.report.asset_report_id, len(shared.report.items)"],
  "relay.refresh": ["fresh", "# fresh.relay_token is a bearer secret: keep it.", "fresh"],
  "asset_report.get": ["own", null, "own.report.asset_report_id, len(own.report.items)"],
  "asset_report.create": ["made", "# made.asset_report_token is a secret: keep it.", "made"],
  "asset_report.refresh": ["made", "# made.asset_report_token is a secret: keep it.", "made"],
  "asset_report.filter": ["made", "# made.asset_report_token is a secret: keep it.", "made"],
  "item.exchange_public_token": ["linked", "# linked.access_token is a secret: keep it.", "linked"],
  "sandbox.create_public_token": ["made", "# made.public_token is what to exchange next.", "made"],
};

function python(operation, values, address) {
  const [name, note, shown] = PYTHON_ENDS[operation.python] ?? ["answer", null, "answer"];
  const named = `${name} = await client.${operation.python}`;
  return `import asyncio
import os

from plaid_relay_async import RelayClient


async def main() -> None:
${client(address, " as client:")}
${call(named, pythonArguments(operation, values), "", 8)}
${note ? `    ${note}\n` : ""}    print(${shown})


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
    keep: ["print(shared.report.asset_report_id, len(shared.report.items))"],
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
  const { outcome, holding, file, keep } = BATCHES[operation.many];
  const creates = operation.many === "relay.create_many";
  const names = [
    outcome,
    "Failed",
    "RelayClient",
    ...(creates ? ["RelayCreateRequest"] : []),
    "Unknown",
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

${file || operation.pdf ? PRIVATE : ""}
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

// What is done with an answer that is none of an error.
function endInScript({ pdf, gives }) {
  if (pdf) {
    return `await writeFile("report.pdf", new Uint8Array(await answer.arrayBuffer()), { mode: 0o600 });
console.log(answer.status, answer.headers.get("Plaid-Request-ID"));
`;
  }
  const secret = gives ? `// told.${gives} is a secret: keep it.\n` : "";
  const fields = [...(gives ? [gives] : []), "request_id"].map((name) => `${name}: string`).join("; ");
  return `const told = (await answer.json()) as { ${fields} };
${secret}console.log(answer.status, told.request_id);
`;
}

function typescript(operation, values, address) {
  const body = bodyOf(operation, leafOf(values));
  const names = variablesOf(operation, values);
  const careful =
    operation.replay === "CREATES"
      ? "// After a 5xx, or no answer, nobody can tell what was made: don't simply repeat it.\n"
      : "";
  return `${operation.pdf ? 'import { writeFile } from "node:fs/promises";\n' : ""}import { env } from "node:process";

const { ${names.join(", ")} } = env;
if (${names.map((name) => `!${name}`).join(" || ")}) {
  throw new Error("set ${names.join(" and ")}");
}

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
${endInScript(operation)}`;
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
