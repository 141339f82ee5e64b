/* Plaid's official client for Node against the simulator, directly or through the gateway: each operation, and the
   client's view of the response.

   run.py starts the servers. It sets PLAID_BASE_URL to the address, OWNER_SECRET and PARTNER_SECRET to the secrets or
   the gateway's keys, and WRONG_SECRET to the error code for a wrong secret. */

"use strict";

const assert = require("node:assert/strict");
const { setTimeout: sleep } = require("node:timers/promises");
const { test } = require("node:test");
const { Configuration, PlaidApi } = require("plaid");

const KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001";
const OWNER = { client_id: "owner", secret: process.env.OWNER_SECRET };
const PARTNER = { client_id: "partner", secret: process.env.PARTNER_SECRET };

/** Return the official client, with credentials in headers if there are any. */
function official(credentials) {
  const headers = { "Plaid-Version": "2020-09-14" };
  if (credentials) {
    headers["PLAID-CLIENT-ID"] = credentials.client_id;
    headers["PLAID-SECRET"] = credentials.secret;
  }
  return new PlaidApi(new Configuration({ basePath: process.env.PLAID_BASE_URL, baseOptions: { headers } }));
}

/** Repeat a call until the report is ready. */
async function retryUntilReady(call) {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    try {
      return await call();
    } catch (error) {
      if (error.response?.data?.error_code !== "PRODUCT_NOT_READY") throw error;
      await sleep(20);
    }
  }
  throw new Error("the report is still not ready");
}

/** Return the status and the error body of a call that must fail. */
async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    return { status: error.response.status, ...error.response.data };
  }
  throw new Error("the call did not fail");
}

for (const place of ["headers", "body"]) {
  test(`every operation, with the credentials in the ${place}`, async (t) => {
    const [owner, partner] = place === "headers" ? [official(OWNER), official(PARTNER)] : [official(), official()];
    const [lenderFields, partnerFields] = place === "headers" ? [{}, {}] : [OWNER, PARTNER];
    const state = {};

    await t.test("sandboxPublicTokenCreate", async () => {
      const { data } = await owner.sandboxPublicTokenCreate({
        institution_id: "ins_109508",
        initial_products: ["assets"],
        options: { webhook: "https://lender.example/plaid" },
        user_token: `user-${place}`,
        ...lenderFields,
      });
      assert.match(data.public_token, /^public-sandbox-/);
      assert.match(data.request_id, /^[A-Za-z0-9]{15}$/);
      state.public_token = data.public_token;
    });

    await t.test("itemPublicTokenExchange", async () => {
      const { data } = await owner.itemPublicTokenExchange({ public_token: state.public_token, ...lenderFields });
      assert.match(data.access_token, /^access-sandbox-/);
      assert.ok(data.item_id);
      state.access_token = data.access_token;
      state.item_id = data.item_id;
    });

    await t.test("sandboxItemFireWebhook", async () => {
      const { data } = await owner.sandboxItemFireWebhook({
        access_token: state.access_token,
        webhook_code: "PRODUCT_READY",
        webhook_type: "ASSETS",
        ...lenderFields,
      });
      assert.equal(data.webhook_fired, true);
    });

    await t.test("webhookVerificationKeyGet", async () => {
      const { data } = await owner.webhookVerificationKeyGet({ key_id: KEY_ID, ...lenderFields });
      assert.deepEqual([data.key.kid, data.key.crv, data.key.expired_at], [KEY_ID, "P-256", null]);
      const key = await crypto.subtle.importKey(
        "jwk",
        data.key,
        { name: "ECDSA", namedCurve: "P-256" },
        true,
        ["verify"],
      );
      assert.equal(key.type, "public");
    });

    await t.test("betaWebhookEventsList", async () => {
      const filters = { item_ids: [state.item_id], delivery_statuses: ["PENDING", "DELIVERED", "FAILED"] };
      const { data } = await owner.betaWebhookEventsList({ count: 100, ...filters, ...lenderFields });
      const [event] = data.webhook_events;
      assert.deepEqual([event.webhook_type, event.payload.webhook_code], ["ASSETS", "PRODUCT_READY"]);
      assert.equal(event.destination_url, "https://lender.example/plaid");
      assert.equal(data.has_more, false);
      const next = await owner.betaWebhookEventsList({ cursor: data.next_cursor, ...filters, ...lenderFields });
      assert.deepEqual(next.data.webhook_events, []);
    });

    await t.test("assetReportCreate", async () => {
      const { data } = await owner.assetReportCreate({
        access_tokens: [state.access_token],
        days_requested: 60,
        options: {
          add_ons: ["investments", "fast_assets"],
          client_report_id: "loan-1",
          user: { first_name: "Alberta" },
          webhook: "https://lender.example/plaid",
        },
        ...lenderFields,
      });
      state.report_token = data.asset_report_token;
      state.report_id = data.asset_report_id;
    });

    await t.test("creditRelayCreate", async () => {
      const { data } = await owner.creditRelayCreate({
        report_tokens: [state.report_token],
        secondary_client_id: PARTNER.client_id,
        ...lenderFields,
      });
      assert.match(data.relay_token, /^credit-relay-sandbox-/);
      state.relay_token = data.relay_token;
    });

    await t.test("assetReportGet", async () => {
      const request = { asset_report_token: state.report_token, ...lenderFields };
      const { data } = await retryUntilReady(() => owner.assetReportGet(request));
      assert.equal(data.report.asset_report_id, state.report_id);
      assert.equal(data.report.user.first_name, "Alberta");
      assert.equal(data.report.insights, undefined);
      const types = data.report.items[0].accounts.map((account) => account.type);
      assert.deepEqual([...new Set(types)], ["depository", "credit", "loan", "investment"]);
      state.report = data.report;
      const fast = (await owner.assetReportGet({ ...request, fast_report: true })).data.report;
      assert.deepEqual(fast.items[0].accounts[0].transactions, []);
      const byUser = await owner.assetReportGet({ user_token: `user-${place}`, ...lenderFields });
      assert.deepEqual(byUser.data.report, data.report);
      const rich = (await owner.assetReportGet({ ...request, include_insights: true })).data.report;
      assert.ok(rich.insights.affordability.income.total_income.amount > 0);
      assert.ok(rich.items[0].accounts[0].transactions[0].credit_category.primary);
    });

    await t.test("assetReportPdfGet", async () => {
      const { data, headers } = await owner.assetReportPdfGet(
        { asset_report_token: state.report_token, ...lenderFields },
        { responseType: "arraybuffer" },
      );
      assert.equal(Buffer.from(data).subarray(0, 5).toString(), "%PDF-");
      assert.equal(Buffer.from(data).subarray(-6).toString(), "%%EOF\n");
      assert.equal(headers["plaid-request-id"].length, 15);
      state.pdf = Buffer.from(data);
    });

    await t.test("creditRelayGet", async () => {
      const { data } = await partner.creditRelayGet({
        relay_token: state.relay_token,
        report_type: "asset",
        ...partnerFields,
      });
      assert.deepEqual(data.report, state.report);
      assert.deepEqual(data.warnings, []);
    });

    await t.test("creditRelayPdfGet", async () => {
      const { data } = await partner.creditRelayPdfGet(
        { relay_token: state.relay_token, report_type: "asset", ...partnerFields },
        { responseType: "arraybuffer" },
      );
      assert.deepEqual(Buffer.from(data), state.pdf);
    });

    await t.test("creditRelayRefresh", async () => {
      const request = { relay_token: state.relay_token, report_type: "asset", ...partnerFields };
      const refreshed = (await partner.creditRelayRefresh({ ...request, webhook: null })).data;
      const { data } = await retryUntilReady(() =>
        partner.creditRelayGet({ ...request, relay_token: refreshed.relay_token }),
      );
      assert.equal(data.report.asset_report_id, refreshed.asset_report_id);
      assert.notEqual(refreshed.asset_report_id, state.report_id);
    });

    await t.test("assetReportRefresh", async () => {
      const { data } = await owner.assetReportRefresh({
        asset_report_token: state.report_token,
        days_requested: 30,
        options: { client_report_id: "loan-2" },
        ...lenderFields,
      });
      const request = { asset_report_token: data.asset_report_token, ...lenderFields };
      const { report } = (await retryUntilReady(() => owner.assetReportGet(request))).data;
      assert.deepEqual([report.days_requested, report.client_report_id], [30, "loan-2"]);
      assert.equal(report.asset_report_id, data.asset_report_id);
    });

    await t.test("assetReportFilter", async () => {
      const [excluded, ...others] = state.report.items[0].accounts.map((account) => account.account_id);
      const { data } = await owner.assetReportFilter({
        asset_report_token: state.report_token,
        account_ids_to_exclude: [excluded],
        ...lenderFields,
      });
      const request = { asset_report_token: data.asset_report_token, ...lenderFields };
      const { report } = (await retryUntilReady(() => owner.assetReportGet(request))).data;
      assert.deepEqual(
        report.items[0].accounts.map((account) => account.account_id),
        others,
      );
    });

    await t.test("creditRelayRemove", async () => {
      const { data } = await owner.creditRelayRemove({ relay_token: state.relay_token, ...lenderFields });
      assert.equal(data.removed, true);
    });

    await t.test("assetReportRemove", async () => {
      const { data } = await owner.assetReportRemove({ asset_report_token: state.report_token, ...lenderFields });
      assert.equal(data.removed, true);
    });

    await t.test("itemRemove", async () => {
      const { data } = await owner.itemRemove({
        access_token: state.access_token,
        reason_code: "OTHER",
        ...lenderFields,
      });
      assert.deepEqual(Object.keys(data), ["request_id"]);
    });
  });
}

test("an error of the simulator has Plaid's error body", async () => {
  const error = await errorOf(() =>
    official(OWNER).creditRelayCreate({ report_tokens: ["assets-sandbox-0"], secondary_client_id: "partner" }),
  );
  assert.deepEqual(
    [error.status, error.error_type, error.error_code, error.request_id.length],
    [400, "INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN", 15],
  );
});

test("an error instead of a PDF is JSON", async () => {
  const error = await errorOf(() =>
    official(PARTNER).creditRelayPdfGet({ relay_token: "credit-relay-sandbox-0", report_type: "asset" }),
  );
  assert.deepEqual([error.status, error.error_type], [400, "INVALID_INPUT"]);
});

test("a wrong secret is rejected", async () => {
  const error = await errorOf(() => official({ ...OWNER, secret: "no" }).itemRemove({ access_token: "a" }));
  assert.equal(error.error_code, process.env.WRONG_SECRET);
});
