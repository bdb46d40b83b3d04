#!/usr/bin/env python3
"""The buyer signs up first: an instance without an owner until the claim. Python, standard library only.

The hook creates the instance at once with a real id. The answer holds a claim URL with a one-time token. The buyer
opens it and signs up, or selects an existing tenant, and then owns the instance. The page reports the claim to spid.
So spid shows the tenant of each instance, and every later call of the hook contains it.

    [[hook]]
    name = "provision"
    exec = { command = ["/opt/app/claim_first.py", "hook", "https://app.example"], working_dir = "/var/lib/my-app" }

    claim_first.py hook URL             the hook, called by spid
    claim_first.py serve PORT           the sign-up page, on this machine; put your site in front
    claim_first.py redeem TOKEN TENANT  the same without a browser

The page and `redeem` run `spid instances claim`. Run them as spid's user, with SPID_CONFIG=/etc/spid/spid.toml, in
the folder of `working_dir`.
"""

import hashlib
import hmac
import html
import http.server
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import urllib.parse

REFUSE = 65


def database():
    db = sqlite3.connect("claims.db", timeout=30)
    db.executescript(
        """PRAGMA synchronous = FULL;
           CREATE TABLE IF NOT EXISTS secret (only INTEGER PRIMARY KEY CHECK (only = 1), key BLOB NOT NULL);
           CREATE TABLE IF NOT EXISTS tenancy (
             order_biz_id TEXT PRIMARY KEY, account TEXT NOT NULL, instance_id TEXT NOT NULL, state TEXT NOT NULL,
             claim TEXT NOT NULL UNIQUE, tenant TEXT, told INTEGER NOT NULL DEFAULT 0);"""
    )
    return db


def secret(db):
    """Key for the tokens, created at the first use."""
    db.execute("INSERT INTO secret (only, key) VALUES (1, ?) ON CONFLICT DO NOTHING", (secrets.token_bytes(32),))
    return db.execute("SELECT key FROM secret").fetchone()[0]


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


# The hook. Each action sets a state, so running it twice does no harm.


def create(call, db, url):
    order = call["instance"]["order_biz_id"]
    # Derive the token from the order, so that every attempt returns the same one. The stored hash opens nothing.
    token = hmac.new(secret(db), order.encode(), "sha256").hexdigest()
    db.execute(
        "INSERT INTO tenancy (order_biz_id, account, instance_id, state, claim) VALUES (?, ?, ?, 'active', ?)"
        " ON CONFLICT DO NOTHING",
        (order, call["account"], f"w-{order}", digest(token)),
    )
    return {
        "instance_id": f"w-{order}",
        "app": {"front_end_url": url},
        # Anyone with the link can claim, so put it into `secret_info`: only the buyer sees it.
        "secret_info": {"claim_url": f"{url}/claim/{token}"},
    }


def set_state(state):
    def act(call, db, _url):
        if call["instance"]["claimed_at"] is None:
            print(f"{call['action']}, and the instance is unclaimed: write to the buyer?", file=sys.stderr)
        order = call["instance"]["order_biz_id"]
        db.execute("UPDATE tenancy SET state = ? WHERE order_biz_id = ?", (state, order))
        return {}

    return act


def release(call, db, _url):
    db.execute("DELETE FROM tenancy WHERE order_biz_id = ?", (call["instance"]["order_biz_id"],))
    return {}


ACTIONS = {
    "create": create,
    "renew": set_state("active"),
    "refund-renew": lambda *_: {},
    "upgrade": lambda *_: {},
    "expire": set_state("frozen"),
    "release": release,
}


def hook(url):
    call = json.load(sys.stdin)
    act = ACTIONS.get(call["action"])
    if act is None:
        print(json.dumps({"refuse": "this hook does not support that"}))
        return REFUSE
    with database() as db:  # commit before the answer
        answer = act(call, db, url)
    print(json.dumps(answer))
    return 0


# The sign-up page.


def redeem(token, tenant):
    """Gives the instance of this token to the tenant. Returns an error text, or None."""
    tenant = " ".join(tenant.split())
    if not tenant or len(tenant) > 100:
        return "Please choose a name of up to 100 characters."
    with database() as db:
        taken = db.execute(
            "UPDATE tenancy SET tenant = ? WHERE claim = ? AND (tenant IS NULL OR tenant = ?)",
            (tenant, digest(token), tenant),
        )
        if taken.rowcount == 0:
            return "This link is not valid, or was used before."
    return None


def tell_spid():
    """Reports every unreported claim to spid. Reporting a claim twice does no harm; losing one does."""
    db = database()
    rows = db.execute(
        "SELECT order_biz_id, account, instance_id, tenant FROM tenancy WHERE tenant IS NOT NULL AND told = 0"
    )
    failed = 0
    for order, account, instance, tenant in rows.fetchall():
        command = ["spid", "instances", "claim", f"--account={account}", f"--tenant={tenant}"]
        command += ["--who=sign-up page", "--why=the buyer opened the claim link", "--", instance]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0:
            with db:
                db.execute("UPDATE tenancy SET told = 1 WHERE order_biz_id = ? AND tenant = ?", (order, tenant))
        else:
            failed = 75  # spid printed the reason; the next claim or start tries again
    return failed


class Page(http.server.BaseHTTPRequestHandler):
    """Sign-up page. Your own site would authenticate the user. GET changes nothing: mail scanners open links."""

    def do_GET(self):
        self.say(200, '<form method="post"><input name="tenant" placeholder="Your workspace"><button>Claim</button></form>')

    def do_POST(self):
        body = self.rfile.read(min(int(self.headers.get("content-length") or 0), 10_000))
        tenant = urllib.parse.parse_qs(body.decode("utf-8", "replace")).get("tenant", [""])[0]
        wrong = redeem(self.path.removeprefix("/claim/"), tenant)
        if wrong:
            return self.say(403, html.escape(wrong))
        tell_spid()
        return self.say(200, f"It is yours, {html.escape(tenant)}.")

    def say(self, status, words):
        page = f"<!doctype html><meta charset=utf-8><title>Claim</title>{words}\n".encode()
        self.send_response(status)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(page)))
        self.send_header("cache-control", "no-store")
        self.send_header("referrer-policy", "no-referrer")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass  # the path is the token


def serve(port):
    tell_spid()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Page)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


def main(arguments):
    os.umask(0o077)
    match arguments:
        case ["hook", url]:
            return hook(url)
        case ["serve", port]:
            return serve(port)
        case ["redeem", token, tenant]:
            wrong = redeem(token, tenant)
            if wrong:
                print(wrong, file=sys.stderr)
                return REFUSE
            return tell_spid()
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
