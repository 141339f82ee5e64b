/* Webhooks signed by jose, the most used JWT library for Node, and judged by plaid_relay_async; and webhooks signed by
   the simulator, and verified by jose.

   run.py sets JUDGE_URL to the address of a server that judges webhooks, and PLAID_BASE_URL to the simulator's. */

"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { test } = require("node:test");
const jose = require("jose");
const { Configuration, PlaidApi } = require("plaid");

const BODY = '{\n  "webhook_type": "ASSETS",\n  "webhook_code": "PRODUCT_READY",\n  "asset_report_id": "1"\n}';
const KEY_ID = "0d1e2f3a-0000-4000-8000-000000000001";

const seconds = () => Math.floor(Date.now() / 1000);
const hashOf = (body) => createHash("sha256").update(body).digest("hex");

/** Return a token as Plaid's, unless a part of it is changed. */
function signed(key, { header = {}, claims = {}, at = seconds() } = {}) {
  return new jose.SignJWT({ request_body_sha256: hashOf(BODY), ...claims })
    .setProtectedHeader({ alg: "ES256", kid: KEY_ID, typ: "JWT", ...header })
    .setIssuedAt(at)
    .sign(key);
}

/** Return "accepted", "stale", or the reason for which plaid_relay_async refuses the webhook. */
async function verdictOn(token, body = BODY) {
  const headers = { "Content-Type": "application/json", "Plaid-Verification": token };
  const response = await fetch(`${process.env.JUDGE_URL}/webhook`, { method: "POST", body, headers });
  return response.text();
}

/** Create a pair of keys, and publish the public one as Plaid does. */
async function publishedKeys() {
  const keys = await jose.generateKeyPair("ES256", { extractable: true });
  const publicKey = await jose.exportJWK(keys.publicKey);
  const jwk = { ...publicKey, alg: "ES256", use: "sig", kid: KEY_ID, created_at: seconds(), expired_at: null };
  const response = await fetch(`${process.env.JUDGE_URL}/key`, { method: "POST", body: JSON.stringify(jwk) });
  assert.equal(response.status, 200);
  return { privateKey: keys.privateKey, publicKey: keys.publicKey, jwk };
}

test("a webhook signed by jose is accepted", async () => {
  const { privateKey } = await publishedKeys();
  for (let attempt = 0; attempt < 50; attempt += 1) {
    assert.equal(await verdictOn(await signed(privateKey)), "accepted");
  }
});

test("a webhook signed by jose too long ago is stale", async () => {
  const { privateKey } = await publishedKeys();
  assert.equal(await verdictOn(await signed(privateKey, { at: seconds() - 400 })), "stale");
});

test("a webhook signed by jose is refused for its reason", async (t) => {
  const { privateKey, publicKey, jwk } = await publishedKeys();
  const secret = new TextEncoder().encode(await jose.exportSPKI(publicKey));
  const keyOf = async (alg) => (await jose.generateKeyPair(alg)).privateKey;
  const forgeries = {
    none: ["wrong_algorithm", new jose.UnsecuredJWT({ request_body_sha256: hashOf(BODY) }).setIssuedAt().encode()],
    HS256: ["wrong_algorithm", signed(secret, { header: { alg: "HS256" } })],
    RS256: ["wrong_algorithm", signed(await keyOf("RS256"), { header: { alg: "RS256" } })],
    PS256: ["wrong_algorithm", signed(await keyOf("PS256"), { header: { alg: "PS256" } })],
    ES384: ["wrong_algorithm", signed(await keyOf("ES384"), { header: { alg: "ES384" } })],
    EdDSA: ["wrong_algorithm", signed(await keyOf("EdDSA"), { header: { alg: "EdDSA" } })],
    "another key": ["wrong_signature", signed(await keyOf("ES256"))],
    "a key in the token": ["key_in_header", signed(privateKey, { header: { jwk } })],
    "a key's URL": ["key_url_in_header", signed(privateKey, { header: { jku: "https://attacker.example" } })],
    "an unknown key": ["unknown_key", signed(privateKey, { header: { kid: "other" } })],
    "no key ID": ["invalid_key_id", signed(privateKey, { header: { kid: undefined } })],
    "a hash in capitals": [
      "invalid_body_hash",
      signed(privateKey, { claims: { request_body_sha256: hashOf(BODY).toUpperCase() } }),
    ],
    "no hash": ["missing_claim", signed(privateKey, { claims: { request_body_sha256: undefined } })],
    "the future": ["issued_in_future", signed(privateKey, { at: seconds() + 400 })],
  };
  for (const [name, [reason, token]] of Object.entries(forgeries)) {
    await t.test(name, async () => assert.equal(await verdictOn(await token), reason));
  }
  await t.test("another body", async () => {
    assert.equal(await verdictOn(await signed(privateKey), JSON.stringify(JSON.parse(BODY))), "other_body");
  });
});

test("a webhook signed by the simulator is verified by jose", async () => {
  const response = await fetch(`${process.env.JUDGE_URL}/signed`, { method: "POST", body: BODY });
  const token = await response.text();
  const { kid, alg } = jose.decodeProtectedHeader(token);
  assert.equal(alg, "ES256");
  const headers = { "PLAID-CLIENT-ID": "owner", "PLAID-SECRET": process.env.OWNER_SECRET };
  const options = { basePath: process.env.PLAID_BASE_URL, baseOptions: { headers } };
  const { data } = await new PlaidApi(new Configuration(options)).webhookVerificationKeyGet({ key_id: kid });
  const key = await jose.importJWK(data.key, "ES256");
  const { payload } = await jose.jwtVerify(token, key, { algorithms: ["ES256"], maxTokenAge: "5 min" });
  assert.equal(payload.request_body_sha256, hashOf(BODY));
  const changed = `${token.slice(0, -4)}${token.endsWith("AAAA") ? "BBBB" : "AAAA"}`;
  await assert.rejects(jose.jwtVerify(changed, key), { code: "ERR_JWS_SIGNATURE_VERIFICATION_FAILED" });
});
