#!/usr/bin/env node
// Provisioning hook as an HTTP endpoint in Node: one file with one line per completed job.
//
//     npm install standardwebhooks
//     export SPID_HOOK_SECRET="whsec_$(openssl rand -base64 32)"
//     node http_hook.mjs 8090 /var/lib/my-app/done.jsonl
//
//     [[hook]]
//     name = "provision"
//     http = { url = "http://127.0.0.1:8090/provision", secret = { env = "SPID_HOOK_SECRET" } }
//
// It gets the call as JSON in the body of a POST, signed as Standard Webhooks defines. 200: done, with the answer.
// 422 with {"refuse": "why"}: refused, do not try again. Any other status: try again later.

import { randomBytes } from "node:crypto";
import { appendFileSync, fsyncSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname } from "node:path";
import { Webhook, WebhookVerificationError } from "standardwebhooks";

const BODY_MAX_BYTES = 1024 * 1024;

// Result of each action: the new state of the instance, and the answer.
const actions = {
  create: (call) => {
    // Names come from outside: always encode them before you put them into another text.
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

// Completed jobs with their answers. Each line is on the disk before its answer is sent.
class Journal {
  answers = new Map(); // by idempotency key
  states = new Map(); // by instance

  constructor(path) {
    this.file = openSync(path, "a", 0o600);
    fsyncSync(openSync(dirname(path))); // the directory entry of a new file must be on the disk too
    const bytes = readFileSync(path);
    // An incomplete last line comes from a process that was killed while it wrote. Its answer was not sent.
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
      ftruncateSync(this.file, this.length); // after a full disk, remove the incomplete line
      throw error;
    }
    this.length += line.length;
    this.take(done);
  }
}

const instanceOf = (call) => JSON.stringify([call.account, call.instance.order_biz_id]);

// Answers of sign-ons are not stored: there is no limit of sign-ons.
function signOn(journal, call) {
  if (journal.states.get(instanceOf(call))?.state !== "active") return [422, { refuse: "it is not active" }];
  // Store the ticket in your application, which accepts it once.
  const ticket = randomBytes(16).toString("base64url");
  const name = encodeURIComponent(call.instance.order_biz_id);
  return [200, { redirect: `https://app.example/${name}/login?ticket=${ticket}` }];
}

// Returns the status and the answer. This function does not await, so two calls cannot overlap. If your work awaits,
// use a lock for each instance.
function provision(journal, call) {
  const act = actions[call.action];
  if (call.action === "sign-on") return signOn(journal, call);
  if (act === undefined) return [422, { refuse: "this hook does not support that" }];
  const key = call.idempotency_key;
  // If the key is known, return the same answer with the same password. This makes the hook idempotent.
  if (!journal.answers.has(key)) {
    const instance = instanceOf(call);
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
    // Verify the bytes as received. It throws if spid did not sign them, or not within the last five minutes.
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
