// Creates relay tokens for a list of partners, a few at a time. No DOM here.

import { requestIdOf, retryAfter, send, textIn, tokensIn } from "./call.js";
import { concernsEveryone, endingOf } from "./explain.js";
import { operationOf } from "./operations.js";

const CREATE = operationOf("/credit/relay/create");
const PATIENCE = 10_000; // milliseconds, for a gateway to say that it is there
const LONGEST_PAUSE = 300; // seconds, all pauses without one success between

/** One partner, and what became of it: waiting, in flight, created, failed, unknown, not_attempted. */
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

export class Run {
  /**
   * @param partners [{line, partner, webhook}]
   * @param settings reportToken, webhook (for rows without one), key, concurrency
   * @param changed called after each change; cheap, for it may be called a thousand times a second
   */
  constructor(partners, settings, changed) {
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
    this.stoppedBy = null; // why, if it wasn't asked for
    this.pausedUntil = 0; // by performance.now()
    this.paused = 0; // seconds of pauses since the last success
    this.settings = settings;
    this.changed = changed;
    this.aborting = new AbortController();
    this.waiting = new AbortController();
    this.next = 0;
  }

  /** Seconds of a pause that are left. */
  get pause() {
    return Math.max(0, (this.pausedUntil - performance.now()) / 1000);
  }

  get done() {
    const { created, failed, unknown, not_attempted } = this.counts;
    return created + failed + unknown + not_attempted;
  }

  /** Run to the end, or until stopped; every row has its outcome then. */
  async run() {
    await Promise.all(Array.from({ length: this.settings.concurrency }, () => this.work()));
    for (const row of this.rows) if (row.outcome === "waiting") this.settle(row, "not_attempted");
  }

  /** Send nothing more; what is in flight is waited for. */
  stop(why = null) {
    this.stopping = true;
    this.stoppedBy ??= why;
    this.waiting.abort();
    this.changed();
  }

  /** Wait no longer for what is in flight: those become unknown. */
  giveUp() {
    this.stop();
    this.aborting.abort();
  }

  async work() {
    while (!this.stopping && this.next < this.rows.length) await this.create(this.rows[this.next++]);
  }

  async create(row) {
    const { key, reportToken, webhook } = this.settings;
    const told = row.webhook ?? webhook;
    const body = {
      report_tokens: [reportToken],
      secondary_client_id: row.partner,
      ...(told ? { webhook: told } : {}),
    };
    while (await this.clear()) {
      row.attempts += 1;
      this.settle(row, "in flight");
      const reply = await send(CREATE.path, body, key, this.aborting.signal);
      if (this.conclude(row, reply)) return this.goOnAfter(reply);
      this.settle(row, "waiting");
    }
    if (row.attempts) this.settle(row, "failed"); // it was refused, for a time: that is known
  }

  // A gateway that has gone would make an unknown of every row that is left.
  async goOnAfter(reply) {
    if (reply.status !== null || this.stopping) return;
    const signal = AbortSignal.any([this.waiting.signal, AbortSignal.timeout(PATIENCE)]);
    const alive = await fetch("/healthz", { cache: "no-store", signal }).then(
      ({ ok }) => ok,
      () => false,
    );
    if (!alive && !this.stopping) this.stop("the gateway doesn’t answer any more");
  }

  // Waits until no pause is in force; false if the run stops first.
  async clear() {
    while (!this.stopping && this.pause > 0) await sleep(this.pause * 1000, this.waiting.signal);
    return !this.stopping;
  }

  // Gives whether this row has its outcome.
  conclude(row, reply) {
    const ending = endingOf(CREATE, reply);
    row.requestId = requestIdOf(reply);
    row.errorCode = ending === "done" ? null : (textIn(reply, "error_code") ?? codeOf(reply));
    if (ending === "later") return this.postpone(row, reply);
    if (ending === "done") {
      row.relayToken = tokensIn(reply).relay_token;
      this.paused = 0;
    }
    this.settle(row, { done: "created", refused: "failed", unknown: "unknown" }[ending]);
    if (ending === "refused" && concernsEveryone(row.errorCode, textIn(reply, "error_type")))
      this.stop(row.errorCode);
    return true;
  }

  // What was refused for a time is asked again, after a pause for all: it was surely not carried out.
  postpone(row, reply) {
    if (this.stopping) return false;
    const seconds = retryAfter(reply.headers) ?? Math.min(60, Math.max(1, this.paused));
    const until = performance.now() + seconds * 1000;
    if (until > this.pausedUntil) {
      this.paused += (until - Math.max(this.pausedUntil, performance.now())) / 1000;
      this.pausedUntil = until;
    }
    if (this.paused > LONGEST_PAUSE)
      this.stop(`${row.errorCode}: the pauses that are asked for are too long`);
    return false;
  }

  settle(row, outcome) {
    this.counts[row.outcome] -= 1;
    this.counts[outcome] += 1;
    row.outcome = outcome;
    this.changed();
  }
}

function codeOf(reply) {
  if (reply.redirected) return "redirect";
  return reply.status === null ? "no answer" : `status ${reply.status}`;
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
