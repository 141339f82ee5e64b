// What can be called, as data: the form, the checks and the code are made from it. tests/browser holds it against
// the endpoint table and the request records of the package, so a field that changes there has to change here.
//
// kind      how an input is checked and shown: token, tokens, word, words, text, url, flag, days, choice
// env       a secret: the code reads it from this variable, and nothing stores it
// within    the object of the body that the input goes into; the package's methods take it as an argument
// named     whether the package's method takes it by name
// replay    what a second attempt would do, in the endpoint table's words
// absent    fields of Plaid's that this page doesn't offer

const ASSETS = "https://plaid.com/docs/api/products/assets/";
const ITEMS = "https://plaid.com/docs/api/items/";
const SANDBOX = "https://plaid.com/docs/api/sandbox/";

const RELAY_TOKEN = {
  name: "relay_token", kind: "token", required: true, env: "RELAY_TOKEN",
  hint: "As the owner of the report handed it over.",
};
const REPORT_TOKEN = {
  name: "asset_report_token", kind: "token", required: true, env: "REPORT_TOKEN",
  hint: "As the creation of the report gave it.",
};
const ACCESS_TOKEN = {
  name: "access_token", kind: "token", required: true, env: "ACCESS_TOKEN",
  hint: "The Item’s, as the exchange gave it.",
};
const INSIGHTS = {
  name: "include_insights", kind: "flag", required: false, named: true,
  hint: "With categories, merchants, and what Plaid makes of it all.",
};
const DAYS_TO_INCLUDE = {
  name: "days_to_include", kind: "days", required: false, named: true, within: "options", least: 0, most: 731,
  hint: "The last days of the report alone, 0 to 731.",
};

export const OPERATIONS = [
  {
    path: "/credit/relay/create", group: "Relay", title: "Share a report", caller: "the report’s owner",
    about: "Shares an Asset Report with one partner, who gets a relay token of its own to read it with.",
    page: `${ASSETS}#creditrelaycreate`, replay: "CREATES", makes: "relay token",
    python: "relay.create", many: "relay.create_many",
    inputs: [
      {
        name: "report_tokens", kind: "token", list: true, required: true, env: "REPORT_TOKEN",
        hint: "One asset report token. It is sent as a list of one.",
      },
      {
        name: "secondary_client_id", kind: "word", required: true, example: "ce5bd328dcd34123456",
        hint: "The partner, by its client id at Plaid.",
      },
      {
        name: "webhook", kind: "url", required: false, named: true,
        hint: "Where Plaid tells that the partner fetched the report.",
      },
    ],
    fixed: {}, absent: [],
  },
  {
    path: "/credit/relay/get", group: "Relay", title: "Read a shared report", caller: "the partner",
    about: "Reads a report that was shared with you, by its relay token.",
    page: `${ASSETS}#creditrelayget`, replay: "HARMLESS", python: "relay.get", many: "relay.get_many",
    inputs: [RELAY_TOKEN, INSIGHTS], fixed: { report_type: "asset" }, absent: [],
  },
  {
    path: "/credit/relay/pdf/get", group: "Relay", title: "Read it as a PDF", caller: "the partner", pdf: true,
    about: "Reads a report that was shared with you as a PDF; Plaid calls this one beta.",
    page: `${ASSETS}#creditrelaypdfget`, replay: "HARMLESS", python: "relay.download_pdf", many: "relay.get_pdf_many",
    inputs: [RELAY_TOKEN], fixed: { report_type: "asset" }, absent: [],
  },
  {
    path: "/credit/relay/refresh", group: "Relay", title: "Have it made anew", caller: "the partner",
    about: "Has a report that was shared with you made anew, with recent data; each call makes another report.",
    page: `${ASSETS}#creditrelayrefresh`, replay: "CREATES", makes: "report",
    python: "relay.refresh", many: "relay.refresh_many",
    inputs: [
      RELAY_TOKEN,
      { name: "webhook", kind: "url", required: false, named: true, hint: "Where Plaid tells that the new report is ready." },
    ],
    fixed: { report_type: "asset" }, absent: [],
  },
  {
    path: "/credit/relay/remove", group: "Relay", title: "Take it back", caller: "the report’s owner",
    about: "Takes a relay token back, so that its partner can’t read the report any more.",
    page: `${ASSETS}#creditrelayremove`, replay: "IDEMPOTENT", python: "relay.remove", many: "relay.remove_many",
    inputs: [RELAY_TOKEN], fixed: {}, absent: [],
  },
  {
    path: "/asset_report/create", group: "Asset reports", title: "Have a report made", caller: "the owner",
    about: "Has a report made of one or more Items; it is ready after some seconds to a minute.",
    page: `${ASSETS}#asset_reportcreate`, replay: "CREATES", makes: "report", python: "asset_report.create", many: null,
    inputs: [
      {
        name: "access_tokens", kind: "tokens", required: true, env: "ACCESS_TOKENS", most: 99,
        hint: "One for each Item, 1 to 99, a line each.",
      },
      { name: "days_requested", kind: "days", required: true, least: 0, most: 731, example: "60", hint: "Days of history, 0 to 731." },
      { name: "client_report_id", kind: "text", required: false, named: true, within: "options", hint: "A name of your own." },
      {
        name: "webhook", kind: "url", required: false, named: true, within: "options",
        hint: "Where Plaid tells that the report is ready, or failed.",
      },
    ],
    fixed: {},
    absent: ["options.add_ons", "options.user", "options.require_all_items", "options.include_fast_report", "options.products"],
  },
  {
    path: "/asset_report/get", group: "Asset reports", title: "Read a report", caller: "the owner",
    about: "Reads a report of your own by its token.",
    page: `${ASSETS}#asset_reportget`, replay: "HARMLESS", python: "asset_report.get", many: null,
    inputs: [
      REPORT_TOKEN,
      INSIGHTS,
      {
        name: "fast_report", kind: "flag", required: false, named: true,
        hint: "The fast version, of a report that was asked for with that add-on.",
      },
      DAYS_TO_INCLUDE,
    ],
    fixed: {}, absent: ["user_token"],
  },
  {
    path: "/asset_report/pdf/get", group: "Asset reports", title: "Read it as a PDF", caller: "the owner", pdf: true,
    about: "Reads a report of your own as a PDF.",
    page: `${ASSETS}#asset_reportpdfget`, replay: "HARMLESS", python: "asset_report.download_pdf", many: null,
    inputs: [REPORT_TOKEN, DAYS_TO_INCLUDE], fixed: {}, absent: [],
  },
  {
    path: "/asset_report/refresh", group: "Asset reports", title: "Have it made anew", caller: "the owner",
    about: "Has a report of your own made anew, as another report with a token of its own.",
    page: `${ASSETS}#asset_reportrefresh`, replay: "CREATES", makes: "report", python: "asset_report.refresh", many: null,
    inputs: [
      REPORT_TOKEN,
      {
        name: "days_requested", kind: "days", required: false, named: true, least: 0, most: 731,
        hint: "Days of history, 0 to 731; the old report’s unless said otherwise.",
      },
      {
        name: "webhook", kind: "url", required: false, named: true, within: "options",
        hint: "Where Plaid tells that the report is ready; the old report’s unless said otherwise.",
      },
    ],
    fixed: {}, absent: ["options.client_report_id", "options.user"],
  },
  {
    path: "/asset_report/filter", group: "Asset reports", title: "Leave accounts out", caller: "the owner",
    about: "Copies a report of your own without some of its accounts, as another report.",
    page: `${ASSETS}#asset_reportfilter`, replay: "CREATES", makes: "report", python: "asset_report.filter", many: null,
    inputs: [
      REPORT_TOKEN,
      {
        name: "account_ids_to_exclude", kind: "words", required: true, example: "account-1",
        hint: "At least one account_id of the report, a line each.",
      },
    ],
    fixed: {}, absent: [],
  },
  {
    path: "/asset_report/remove", group: "Asset reports", title: "Take its token back", caller: "the owner",
    about: "Takes a report’s token back; what becomes of its relay tokens isn’t published.",
    page: `${ASSETS}#asset_reportremove`, replay: "IDEMPOTENT", python: "asset_report.remove", many: null,
    inputs: [REPORT_TOKEN], fixed: {}, absent: [],
  },
  {
    path: "/item/public_token/exchange", group: "Items", title: "Exchange a public token", caller: "the owner",
    about: "Turns a public token, which lives 30 minutes, into an access token.",
    page: `${ITEMS}#itempublic_tokenexchange`, replay: "CREATES", makes: "access token",
    python: "item.exchange_public_token", many: null,
    inputs: [
      { name: "public_token", kind: "token", required: true, env: "PUBLIC_TOKEN", hint: "As Link or the sandbox gave it." },
    ],
    fixed: {}, absent: [],
  },
  {
    path: "/item/remove", group: "Items", title: "Remove an Item", caller: "the owner",
    about: "Takes an Item’s access token back; reports that were made of it stay.",
    page: `${ITEMS}#itemremove`, replay: "IDEMPOTENT", python: "item.remove", many: null,
    inputs: [
      ACCESS_TOKEN,
      {
        name: "reason_code", kind: "choice", required: false, named: true, hint: "Why.",
        choices: [
          "FRAUD_FIRST_PARTY", "FRAUD_FALSE_IDENTITY", "FRAUD_ABUSE", "FRAUD_OTHER", "CONNECTION_IS_NON_FUNCTIONAL", "OTHER",
        ],
      },
      { name: "reason_note", kind: "text", required: false, named: true, most: 512, hint: "Why, in at most 512 characters." },
    ],
    fixed: {}, absent: [],
  },
  {
    path: "/sandbox/public_token/create", group: "Sandbox", title: "Make a test Item", caller: "whoever tests",
    about: "Makes a test Item, and gives a public token to exchange.",
    page: `${SANDBOX}#sandboxpublic_tokencreate`, replay: "CREATES", makes: "test Item",
    python: "sandbox.create_public_token", many: null,
    inputs: [
      {
        name: "institution_id", kind: "word", required: true, preset: true, example: "ins_109508",
        hint: "ins_109508 is Plaid’s test bank, First Platypus Bank.",
      },
      { name: "initial_products", kind: "words", required: true, preset: true, example: "assets", hint: "What the Item is for, a line each." },
    ],
    fixed: {}, absent: ["options", "user_token", "user_id"],
  },
  {
    path: "/sandbox/item/fire_webhook", group: "Sandbox", title: "Fire a webhook", caller: "whoever tests",
    about: "Has a webhook sent to the address that an Item was made with; each call sends one.",
    page: `${SANDBOX}#sandboxitemfire_webhook`, replay: "CREATES", makes: "webhook", python: "sandbox.fire_webhook", many: null,
    inputs: [
      ACCESS_TOKEN,
      { name: "webhook_code", kind: "word", required: true, example: "PRODUCT_READY", hint: "Such as PRODUCT_READY." },
      {
        name: "webhook_type", kind: "word", required: false, named: true,
        hint: "Such as ASSETS, for codes that several products have.",
      },
    ],
    fixed: {}, absent: [],
  },
  {
    path: "/webhook_verification_key/get", group: "Webhooks", title: "Get a webhook’s key", caller: "whoever receives webhooks",
    about: "Gets the public key that a webhook is signed with.",
    page: "https://plaid.com/docs/api/webhooks/webhook-verification/", replay: "HARMLESS",
    python: "webhook_verification_key.get", many: null,
    inputs: [
      {
        name: "key_id", kind: "word", required: true, example: "6c5516e1-92dc-479e-a8ff-5a51992e0001",
        hint: "The kid in the header of the webhook’s JWT.",
      },
    ],
    fixed: {}, absent: [],
  },
];

/** The operation of a path. */
export const operationOf = (path) => OPERATIONS.find((operation) => operation.path === path);

// The fields of answers that can go into a next call, by the variable that the inputs name.
export const TOKENS = {
  relay_token: { env: "RELAY_TOKEN", next: ["/credit/relay/get", "/credit/relay/pdf/get", "/credit/relay/refresh", "/credit/relay/remove"] },
  asset_report_token: { env: "REPORT_TOKEN", next: ["/credit/relay/create", "/asset_report/get", "/asset_report/pdf/get"] },
  access_token: { env: "ACCESS_TOKENS", next: ["/asset_report/create"] },
  public_token: { env: "PUBLIC_TOKEN", next: ["/item/public_token/exchange"] },
};
