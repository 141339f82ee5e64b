/* Plaid's own client for Node, pointed at the simulator, directly or through the gateway: each operation, and what
   the client makes of the answer.

   run.py starts them, and tells the address in PLAID_BASE_URL, the secrets in OWNER_SECRET and PARTNER_SECRET, which
   are the gateway's keys where that is called, and in WRONG_SECRET the code that a wrong one is refused with. */

"use strict";

const assert = require("node:assert/strict");
const { setTimeout: sleep } = require("node:timers/promises");
const { test } = require("node:test");
const { Configuration, PlaidApi } = require("plaid");

const KEY_ID = "6c5516e1-92dc-479e-a8ff-5a51992e0001";
const OWNER = { client_id: "owner", secret: process.env.OWNER_SECRET };
const PARTNER = { client_id: "partner", secret: process.env.PARTNER_SECRET };

/** The official client, with its credentials in headers or, without any, none. */
function official(who) {
  const headers = { "Plaid-Version": "2020-09-14" };
  if (who) {
    headers["PLAID-CLIENT-ID"] = who.client_id;
    headers["PLAID-SECRET"] = who.secret;
  }
  return new PlaidApi(new Configuration({ basePath: process.env.PLAID_BASE_URL, baseOptions: { headers } }));
}

/** Repeat until the report is ready. */
async function patiently(ask) {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    try {
      return await ask();
    } catch (error) {
      if (error.response?.data?.error_code !== "PRODUCT_NOT_READY") throw error;
      await sleep(20);
    }
  }
  throw new Error("the report never got ready");
}

/** The status and error body that a call is refused with. */
async function refusal(ask) {
  try {
    await ask();
  } catch (error) {
    return { status: error.response.status, ...error.response.data };
  }
  throw new Error("it was not refused");
}

for (const place of ["headers", "body"]) {
  test(`every operation, with the credentials in the ${place}`, async (t) => {
    const [owner, partner] = place === "headers" ? [official(OWNER), official(PARTNER)] : [official(), official()];
    const [ours, theirs] = place === "headers" ? [{}, {}] : [OWNER, PARTNER];
    const seen = {};

    await t.test("sandboxPublicTokenCreate", async () => {
      const { data } = await owner.sandboxPublicTokenCreate({
        institution_id: "ins_109508",
        initial_products: ["assets"],
        options: { webhook: "https://lender.example/plaid" },
        user_token: `user-${place}`,
        ...ours,
      });
      assert.match(data.public_token, /^public-sandbox-/);
      assert.match(data.request_id, /^[A-Za-z0-9]{15}$/);
      seen.public_token = data.public_token;
    });

    await t.test("itemPublicTokenExchange", async () => {
      const { data } = await owner.itemPublicTokenExchange({ public_token: seen.public_token, ...ours });
      assert.match(data.access_token, /^access-sandbox-/);
      assert.ok(data.item_id);
      seen.access_token = data.access_token;
    });

    await t.test("sandboxItemFireWebhook", async () => {
      const { data } = await owner.sandboxItemFireWebhook({
        access_token: seen.access_token,
        webhook_code: "PRODUCT_READY",
        webhook_type: "ASSETS",
        ...ours,
      });
      assert.equal(data.webhook_fired, true);
    });

    await t.test("webhookVerificationKeyGet", async () => {
      const { data } = await owner.webhookVerificationKeyGet({ key_id: KEY_ID, ...ours });
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

    await t.test("assetReportCreate", async () => {
      const { data } = await owner.assetReportCreate({
        access_tokens: [seen.access_token],
        days_requested: 60,
        options: {
          add_ons: ["investments", "fast_assets"],
          client_report_id: "loan-1",
          user: { first_name: "Alberta" },
          webhook: "https://lender.example/plaid",
        },
        ...ours,
      });
      seen.report_token = data.asset_report_token;
      seen.report_id = data.asset_report_id;
    });

    await t.test("creditRelayCreate", async () => {
      const { data } = await owner.creditRelayCreate({
        report_tokens: [seen.report_token],
        secondary_client_id: PARTNER.client_id,
        ...ours,
      });
      assert.match(data.relay_token, /^credit-relay-sandbox-/);
      seen.relay_token = data.relay_token;
    });

    await t.test("assetReportGet", async () => {
      const ask = { asset_report_token: seen.report_token, ...ours };
      const { data } = await patiently(() => owner.assetReportGet(ask));
      assert.equal(data.report.asset_report_id, seen.report_id);
      assert.equal(data.report.user.first_name, "Alberta");
      assert.equal(data.report.insights, undefined);
      const types = data.report.items[0].accounts.map((account) => account.type);
      assert.deepEqual([...new Set(types)], ["depository", "credit", "loan", "investment"]);
      seen.report = data.report;
      const fast = (await owner.assetReportGet({ ...ask, fast_report: true })).data.report;
      assert.deepEqual(fast.items[0].accounts[0].transactions, []);
      const byUser = await owner.assetReportGet({ user_token: `user-${place}`, ...ours });
      assert.deepEqual(byUser.data.report, data.report);
      const rich = (await owner.assetReportGet({ ...ask, include_insights: true })).data.report;
      assert.ok(rich.insights.affordability.income.total_income.amount > 0);
      assert.ok(rich.items[0].accounts[0].transactions[0].credit_category.primary);
    });

    await t.test("assetReportPdfGet", async () => {
      const { data, headers } = await owner.assetReportPdfGet(
        { asset_report_token: seen.report_token, ...ours },
        { responseType: "arraybuffer" },
      );
      assert.equal(Buffer.from(data).subarray(0, 5).toString(), "%PDF-");
      assert.equal(Buffer.from(data).subarray(-6).toString(), "%%EOF\n");
      assert.equal(headers["plaid-request-id"].length, 15);
      seen.pdf = Buffer.from(data);
    });

    await t.test("creditRelayGet", async () => {
      const { data } = await partner.creditRelayGet({
        relay_token: seen.relay_token,
        report_type: "asset",
        ...theirs,
      });
      assert.deepEqual(data.report, seen.report);
      assert.deepEqual(data.warnings, []);
    });

    await t.test("creditRelayPdfGet", async () => {
      const { data } = await partner.creditRelayPdfGet(
        { relay_token: seen.relay_token, report_type: "asset", ...theirs },
        { responseType: "arraybuffer" },
      );
      assert.deepEqual(Buffer.from(data), seen.pdf);
    });

    await t.test("creditRelayRefresh", async () => {
      const ask = { relay_token: seen.relay_token, report_type: "asset", ...theirs };
      const fresh = (await partner.creditRelayRefresh({ ...ask, webhook: null })).data;
      const { data } = await patiently(() => partner.creditRelayGet({ ...ask, relay_token: fresh.relay_token }));
      assert.equal(data.report.asset_report_id, fresh.asset_report_id);
      assert.notEqual(fresh.asset_report_id, seen.report_id);
    });

    await t.test("assetReportRefresh", async () => {
      const { data } = await owner.assetReportRefresh({
        asset_report_token: seen.report_token,
        days_requested: 30,
        options: { client_report_id: "loan-2" },
        ...ours,
      });
      const ask = { asset_report_token: data.asset_report_token, ...ours };
      const { report } = (await patiently(() => owner.assetReportGet(ask))).data;
      assert.deepEqual([report.days_requested, report.client_report_id], [30, "loan-2"]);
      assert.equal(report.asset_report_id, data.asset_report_id);
    });

    await t.test("assetReportFilter", async () => {
      const [gone, ...kept] = seen.report.items[0].accounts.map((account) => account.account_id);
      const { data } = await owner.assetReportFilter({
        asset_report_token: seen.report_token,
        account_ids_to_exclude: [gone],
        ...ours,
      });
      const ask = { asset_report_token: data.asset_report_token, ...ours };
      const { report } = (await patiently(() => owner.assetReportGet(ask))).data;
      assert.deepEqual(
        report.items[0].accounts.map((account) => account.account_id),
        kept,
      );
    });

    await t.test("creditRelayRemove", async () => {
      const { data } = await owner.creditRelayRemove({ relay_token: seen.relay_token, ...ours });
      assert.equal(data.removed, true);
    });

    await t.test("assetReportRemove", async () => {
      const { data } = await owner.assetReportRemove({ asset_report_token: seen.report_token, ...ours });
      assert.equal(data.removed, true);
    });

    await t.test("itemRemove", async () => {
      const { data } = await owner.itemRemove({ access_token: seen.access_token, reason_code: "OTHER", ...ours });
      assert.deepEqual(Object.keys(data), ["request_id"]);
    });
  });
}

test("a refusal reaches the official client's user as Plaid's", async () => {
  const told = await refusal(() =>
    official(OWNER).creditRelayCreate({ report_tokens: ["assets-sandbox-0"], secondary_client_id: "partner" }),
  );
  assert.deepEqual(
    [told.status, told.error_type, told.error_code, told.request_id.length],
    [400, "INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN", 15],
  );
});

test("a refusal of a PDF is told in JSON", async () => {
  const told = await refusal(() =>
    official(PARTNER).creditRelayPdfGet({ relay_token: "credit-relay-sandbox-0", report_type: "asset" }),
  );
  assert.deepEqual([told.status, told.error_type], [400, "INVALID_INPUT"]);
});

test("wrong keys are refused", async () => {
  const told = await refusal(() => official({ ...OWNER, secret: "no" }).itemRemove({ access_token: "a" }));
  assert.equal(told.error_code, process.env.WRONG_SECRET);
});
