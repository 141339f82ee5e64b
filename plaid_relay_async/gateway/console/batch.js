// Creates relay tokens for a list of partners, with a limited number of concurrent calls. It does not use the DOM.

import { affectsAllRows, certaintyOf, explain, hasSucceeded } from "./explain.js";
import { parseRetryAfter, requestIdOf, send, textIn, tokensIn } from "./http.js";
import { operationOf } from "./operations.js";
import { bodyOf } from "./request-body.js";

const CREATE = operationOf("/credit/relay/create");
const HEALTH_TIMEOUT = 10_000; // milliseconds for the gateway to respond to a health check
const MAX_PAUSES = 300; // seconds; the sum of all pauses without a success between them

/** Return the body of the request that shares a report with a partner. */
export function bodyFor(reportToken, partner, webhook = null) {
  const values = { report_tokens: [reportToken], secondary_client_id: partner, webhook: webhook ?? undefined };
  return bodyOf(CREATE, ({ name }) => values[name]);
}

/** One partner and its outcome: waiting, in flight, created, failed, unknown, not_attempted. */
class Row {
  constructor({ line, partner, webhook }) {
    Object.assign(this, {
      line,
      partner,
      webhook,
      outcome: "waiting",
      relayToken: null,
      requestId: null,
      errorCode: null,
      attempts: 0,
    });
  }
}

export class Batch {
  /**
   * @param partners [{line, partner, webhook}]
   * @param settings reportToken, webhook (for rows without one), key, concurrency
   * @param onChange called after each change, up to a thousand times a second
   */
  constructor(partners, settings, onChange) {
    this.rows = partners.map((partner) => new Row(partner));
    this.counts = {
      created: 0,
      failed: 0,
      unknown: 0,
      not_attempted: 0,
      waiting: this.rows.length,
      "in flight": 0,
    };
    this.stopping = false;
    this.stopReason = null; // why it stopped, unless the user stopped it
    this.stopTexts = []; // the explanation of the error that stopped it
    this.pausedUntil = 0; // as performance.now()
    this.pausedSeconds = 0; // the sum of the pauses since the last success
    this.settings = settings;
    this.onChange = onChange;
    this.requestAbort = new AbortController(); // aborts requests in flight
    this.waitAbort = new AbortController(); // ends pauses and health checks
    this.next = 0;
  }

  /** The remaining seconds of a pause. */
  get remainingPause() {
    return Math.max(0, (this.pausedUntil - performance.now()) / 1000);
  }

  get done() {
    const { created, failed, unknown, not_attempted } = this.counts;
    return created + failed + unknown + not_attempted;
  }

  /** Run until every row has its outcome, or until stopped. */
  async run() {
    await Promise.all(Array.from({ length: this.settings.concurrency }, () => this.processRows()));
    for (const row of this.rows) if (row.outcome === "waiting") this.setOutcome(row, "not_attempted");
  }

  /** Send no more requests, and wait for those in flight. */
  stop(reason = null, texts = []) {
    this.stopping = true;
    if (this.stopReason === null) Object.assign(this, { stopReason: reason, stopTexts: texts });
    this.waitAbort.abort();
    this.onChange();
  }

  /** Stop waiting for the requests in flight. Their outcome is unknown. */
  abandon() {
    this.stop();
    this.requestAbort.abort();
  }

  async processRows() {
    while (!this.stopping && this.next < this.rows.length) await this.create(this.rows[this.next++]);
  }

  async create(row) {
    const { key, reportToken, webhook } = this.settings;
    const body = bodyFor(reportToken, row.partner, row.webhook ?? webhook);
    while (await this.waitForPause()) {
      row.attempts += 1;
      this.setOutcome(row, "in flight");
      const response = await send(CREATE.path, body, key, this.requestAbort.signal);
      if (this.conclude(row, response)) return this.checkGateway(response);
      this.setOutcome(row, "waiting");
    }
    if (row.attempts) this.setOutcome(row, "failed"); // it was declined, so its outcome is not unknown
  }

  // If the gateway is down, each further request would have an unknown outcome, so the batch stops.
  async checkGateway(response) {
    if (response.status !== null || this.stopping) return;
    const signal = AbortSignal.any([this.waitAbort.signal, AbortSignal.timeout(HEALTH_TIMEOUT)]);
    const healthy = await fetch("/healthz", { cache: "no-store", signal }).then(
      ({ ok }) => ok,
      () => false,
    );
    if (!healthy && !this.stopping) this.stop("the gateway no longer responds");
  }

  // Wait for the end of the pause, and return whether the batch goes on.
  async waitForPause() {
    while (!this.stopping && this.remainingPause > 0)
      await sleep(this.remainingPause * 1000, this.waitAbort.signal);
    return !this.stopping;
  }

  // Record the response, and return whether the row has its outcome.
  conclude(row, response) {
    row.requestId = requestIdOf(response);
    if (hasSucceeded(CREATE, response)) {
      row.relayToken = tokensIn(response).relay_token;
      row.errorCode = null;
      this.pausedSeconds = 0;
      this.setOutcome(row, "created");
      return true;
    }
    row.errorCode = textIn(response, "error_code") ?? codeOf(response);
    const certainty = certaintyOf(CREATE, response);
    if (certainty === "declined") return this.postpone(row, response);
    this.setOutcome(row, certainty === "in_doubt" ? "unknown" : "failed");
    if (certainty === "definitive" && affectsAllRows(row.errorCode, textIn(response, "error_type")))
      this.stop(row.errorCode, explain(CREATE, response).texts);
    return true;
  }

  // A declined request was not executed. It is sent again after a pause of all rows.
  postpone(row, response) {
    if (this.stopping) return false;
    const seconds = parseRetryAfter(response.headers) ?? Math.min(60, Math.max(1, this.pausedSeconds));
    const until = performance.now() + seconds * 1000;
    if (until > this.pausedUntil) {
      this.pausedSeconds += (until - Math.max(this.pausedUntil, performance.now())) / 1000;
      this.pausedUntil = until;
    }
    if (this.pausedSeconds > MAX_PAUSES) this.stop(`${row.errorCode}: the requested pauses are too long`);
    return false;
  }

  setOutcome(row, outcome) {
    this.counts[row.outcome] -= 1;
    this.counts[outcome] += 1;
    row.outcome = outcome;
    this.onChange();
  }
}

function codeOf(response) {
  if (response.redirected) return "redirect";
  return response.status === null ? "no response" : `status ${response.status}`;
}

function sleep(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}
