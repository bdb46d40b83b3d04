#!/usr/bin/env python3
"""Provisioning hook as an HTTP endpoint, standard library only: one file per instance.

    export SPID_HOOK_SECRET="whsec_$(openssl rand -base64 32)"
    ./http_hook.py 8090 /var/lib/my-app

    [[hook]]
    name = "provision"
    http = { url = "http://127.0.0.1:8090/provision", secret = { env = "SPID_HOOK_SECRET" } }

It gets the call as JSON in the body of a POST, signed as Standard Webhooks defines. is_genuine() does the work of a
library for that (http_hook.mjs uses one). 200: done, with the answer. 422 with {"refuse": "why"}: refused, do not try
again. Any other status: try again later.
"""

import base64
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import re
import secrets
import sys
import threading
import time

TOLERANCE_S = 5 * 60
BODY_MAX_BYTES = 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # used as a file name and a host name


def create(call, state):
    name = call["instance"]["order_biz_id"]
    state.update(state="active", sku=call["sku"], items=call["items"], expires_on=call["expires_on"])
    url = f"https://{name}.app.example"
    return {
        "instance_id": name,
        "app": {
            "front_end_url": url,
            "admin_url": f"{url}/admin",
            "username": "admin",
            "password": secrets.token_urlsafe(16),
        },
    }


def renew(call, state):
    state.update(state="active", expires_on=call["expires_on"])
    return {}


def refund_renew(call, state):
    state.update(expires_on=call["expires_on"])
    return {}


def upgrade(call, state):
    state.update(sku=call["sku"], items=call["items"])
    return {}


def expire(call, state):
    state.update(state="frozen")
    return {}


def sign_on(call, state):
    if state.get("state") != "active":
        return {"refuse": f"it is {state.get('state', 'not there')}"}
    # Your application accepts this ticket once: it signs the browser in and removes the ticket.
    key = call["idempotency_key"]
    if state.get("ticket", {}).get("for") != key:
        state["ticket"] = {"for": key, "value": secrets.token_urlsafe(32)}
    name = call["instance"]["order_biz_id"]
    return {"redirect": f"https://{name}.app.example/login?ticket={state['ticket']['value']}"}


def release(call, state):
    state.clear()
    state.update(state="released")
    return {}


ACTIONS = {
    "create": create,
    "renew": renew,
    "refund-renew": refund_renew,
    "upgrade": upgrade,
    "expire": expire,
    "release": release,
    "sign-on": sign_on,
}


def is_genuine(key, headers, body):
    """Returns True if spid has signed this body within the last five minutes."""
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    expected = b"v1," + base64.b64encode(digest)
    # During a change of the secret there are two signatures, and one of them must be valid.
    presented = headers.get("webhook-signature", "").encode().split(b" ")
    return any(hmac.compare_digest(one, expected) for one in presented)


def save(file, state):
    """Writes the complete state or nothing, and returns when it is on the disk."""
    new = file.with_suffix(".new")
    with open(new, "w") as out:
        json.dump(state, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def provision(root, call):
    """Returns the status and the answer."""
    act = ACTIONS.get(call["action"])
    if act is None:
        return 422, {"refuse": "this hook does not support that"}
    name = call["instance"]["order_biz_id"] or ""
    if not NAME.fullmatch(name):
        return 500, {}
    file = root / f"{name}.json"
    state = json.loads(file.read_text()) if file.exists() else {}
    # If the key is known, return the same answer with the same password. This makes the hook idempotent.
    answers = state.pop("answers", {})
    key = call["idempotency_key"]
    if key not in answers:
        answer = act(call, state)
        answers = {} if call["action"] == "release" else answers
        kept = {} if call["action"] == "sign-on" else {key: answer}  # not stored: there is no limit of sign-ons
        save(file, {**state, "answers": {**answers, **kept}})
        answers[key] = answer
    return (422 if "refuse" in answers[key] else 200), answers[key]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep the connection open for the next call
    disable_nagle_algorithm = True
    lock = threading.Lock()

    def respond(self):
        length = int(self.headers.get("content-length", 0))
        if length > BODY_MAX_BYTES:
            self.close_connection = True
            return 413, {}
        body = self.rfile.read(length)
        if not is_genuine(self.server.key, self.headers, body):
            return 401, {}
        with self.lock:
            return provision(self.server.root, json.loads(body))

    def do_POST(self):
        status, answer = self.respond()
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main():
    os.umask(0o077)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.root = pathlib.Path(sys.argv[2])
    server.root.mkdir(parents=True, exist_ok=True)
    prefix, _, secret = os.environ["SPID_HOOK_SECRET"].partition("_")
    if prefix != "whsec":
        sys.exit("SPID_HOOK_SECRET does not begin with whsec_")
    server.key = base64.b64decode(secret, validate=True)
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
