#!/usr/bin/env node
// A provisioning hook as an HTTP endpoint in Node: a line for each job it has done, in one file.
//
//     npm install standardwebhooks
//     export SPID_HOOK_SECRET="whsec_$(openssl rand -base64 32)"
//     node http_hook.mjs 8090 /var/lib/my-app/done.jsonl
//
//     [[hook]]
//     name = "provision"
//     http = { url = "http://127.0.0.1:8090/provision", secret = { env = "SPID_HOOK_SECRET" } }
//
// The call comes as JSON in the body of a POST, signed as Standard Webhooks says. 200: done, with the
// answer. 422 with {"refuse": "why"}: refused, do not try again. Anything else: try again later.

import { randomBytes } from "node:crypto";
import { appendFileSync, fsyncSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname } from "node:path";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const BODY_MAX_BYTES = 1024 * 1024;

// What each action makes of an instance, and what it answers.
const actions = {
  create: (call) => {
    // Names come from outside: encode them wherever they are put into something else.
    const url = `https://app.example/${encodeURIComponent(call.instance.order_biz_id)}`;
    const password = randomBytes(16).toString("base64url");
    return {
      state: { state: "active", sku: call.sku, items: call.items, expires_on: call.expires_on },
      answer: { app: { front_end_url: url, admin_url: `${url}/admin`, username: "admin", password } },
    };
  },
  renew: (call, before) => ({ state: { ...before, state: "active", expires_on: call.expires_on }, answer: {} }),
  "refund-renew": (call, before) => ({ state: { ...before, expires_on: call.expires_on }, answer: {} }),
  upgrade: (call, before) => ({ state: { ...before, sku: call.sku, items: call.items }, answer: {} }),
  expire: (call, before) => ({ state: { ...before, state: "frozen" }, answer: {} }),
  release: () => ({ state: { state: "released" }, answer: {} }),
};

// What was done, and what was answered. Each line is on the disk before anybody hears of it.
class Journal {
  answers = new Map(); // by idempotency key
  states = new Map(); // by instance

  constructor(path) {
    this.file = openSync(path, "a", 0o600);
    fsyncSync(openSync(dirname(path))); // the name of a new file is to last as well
    const bytes = readFileSync(path);
    // Half a line is of a process that was killed while it wrote; it had not answered yet.
    this.length = bytes.lastIndexOf("\n") + 1;
    ftruncateSync(this.file, this.length);
    const lines = bytes.subarray(0, this.length).toString().split("\n");
    lines.filter((line) => line !== "").forEach((line) => this.take(JSON.parse(line)));
  }

  take({ key, instance, state, answer }) {
    this.answers.set(key, answer);
    this.states.set(instance, state);
  }

  keep(done) {
    const line = Buffer.from(`${JSON.stringify(done)}\n`);
    try {
      appendFileSync(this.file, line);
      fsyncSync(this.file);
    } catch (error) {
      ftruncateSync(this.file, this.length); // a full disk must not leave half a line before the next one
      throw error;
    }
    this.length += line.length;
    this.take(done);
  }
}

// A status and an answer. Nothing in here waits, so no two calls are in here at once; work that does wait
// needs a lock for each instance.
function provision(journal, call) {
  const act = actions[call.action];
  if (act === undefined) return [422, { refuse: "this hook does not support that" }];
  const key = call.idempotency_key;
  // Done before? Then the same answer again, the same password too: that is all of idempotency.
  if (!journal.answers.has(key)) {
    const instance = JSON.stringify([call.account, call.instance.order_biz_id]);
    journal.keep({ key, instance, ...act(call, journal.states.get(instance)) });
  }
  return [200, journal.answers.get(key)];
}

async function bodyOf(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > BODY_MAX_BYTES) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function respond(journal, webhook, request) {
  try {
    const body = await bodyOf(request);
    if (body === undefined) return [413, {}];
    // Over the bytes as they came. It throws if they are not spid's, or not of these five minutes.
    return provision(journal, webhook.verify(body, request.headers));
  } catch (error) {
    if (error instanceof WebhookVerificationError) return [401, {}];
    console.error(error);
    return [500, {}];
  }
}

const [port, path] = process.argv.slice(2);
const journal = new Journal(path);
const webhook = new Webhook(process.env.SPID_HOOK_SECRET);
const server = createServer(async (request, response) => {
  const [status, answer] = await respond(journal, webhook, request);
  response.statusCode = status;
  response.setHeader("content-type", "application/json").end(JSON.stringify(answer));
});
server.listen(Number(port), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/`);
});
