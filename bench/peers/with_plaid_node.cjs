/* Plaid's own client for Node, with keep-alive connections and a bounded number of concurrent calls. NODE_PATH is
   the folder where it is installed. It takes the same options as the other clients, and prints the same line. */

"use strict";

const { readFileSync } = require("node:fs");
const http = require("node:http");
const https = require("node:https");
const { performance } = require("node:perf_hooks");
const { parseArgs } = require("node:util");
const { Configuration, PlaidApi } = require("plaid");

const REPORT = "assets-sandbox-6f12f5bb-22dd-4855-b918-f47ec439198a";
const HEADERS = { "PLAID-CLIENT-ID": "bench", "PLAID-SECRET": "b".repeat(30), "Plaid-Version": "2020-09-14" };

function parseOptions() {
  const type = "string";
  const { values } = parseArgs({ options: { url: { type }, partners: { type }, concurrency: { type }, ca: { type } } });
  return { ...values, partners: Number(values.partners), concurrency: Number(values.concurrency) };
}

function createClient({ url, concurrency, ca }) {
  const agentOptions = { keepAlive: true, maxSockets: concurrency };
  const baseOptions = {
    headers: HEADERS,
    httpAgent: new http.Agent(agentOptions),
    httpsAgent: new https.Agent({ ...agentOptions, ca: ca && readFileSync(ca) }),
  };
  return new PlaidApi(new Configuration({ basePath: url, baseOptions }));
}

function kilobytes(name) {
  return Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(readFileSync("/proc/self/status", "ascii"))[1]);
}

async function createAll(api, partners, concurrency, onToken) {
  let next = 0;
  async function createUntilDone() {
    while (next < partners) {
      const secondary_client_id = (next++).toString(16).padStart(24, "0");
      const { data } = await api.creditRelayCreate({ report_tokens: [REPORT], secondary_client_id });
      onToken(data.relay_token);
    }
  }
  await Promise.all(Array.from({ length: concurrency }, createUntilDone));
}

async function main() {
  const { partners, concurrency, ...connection } = parseOptions();
  const before = kilobytes("VmRSS");
  const started = performance.now();
  const cpuBefore = process.cpuUsage();
  const api = createClient({ ...connection, concurrency });
  let created = 0;
  let first = null;
  await createAll(api, partners, concurrency, (token) => {
    first ??= (performance.now() - started) / 1000;
    created += token.startsWith("credit-relay-");
  });
  const wall = (performance.now() - started) / 1000;
  const { user, system } = process.cpuUsage(cpuBefore);
  if (created !== partners) throw new Error(`${created} tokens for ${partners} partners`);
  const peak_kb = kilobytes("VmHWM");
  const memory = { peak_kb, growth_kb: peak_kb - before };
  console.log(JSON.stringify({ wall, cpu: (user + system) / 1e6, created, first, ...memory, beside: [] }));
  process.exit(0); // without it, the process would wait until the idle connections are closed
}

main();
