#!/usr/bin/env python3
"""Orders that need approval: the hook answers `pending`, and a person completes the job. Python, standard library only.

    [[hook]]
    name = "provision"
    exec = { command = ["/opt/app/approval.py", "hook"], working_dir = "/var/lib/my-app" }

    approval.py hook                the hook, called by spid
    approval.py list                list the orders that wait for approval
    approval.py approve ORDER WHY   create the instance, and report it to spid
    approval.py refuse ORDER WHY    make spid call the hook again, which then refuses

An order of up to 100 seats needs no approval; more seats wait for sales. Meanwhile the marketplace gets "not yet" and
calls again, at most 120 times (`spid held list` shows the count). So approval may take hours, not weeks.

`approve` runs `spid instances complete`, and `refuse` runs `spid jobs retry`. Run both as spid's user, with
SPID_CONFIG=/etc/spid/spid.toml, in the folder of `working_dir`.
"""

import json
import os
import secrets
import sqlite3
import subprocess
import sys

REFUSE, ENOUGH = 65, 100


def database():
    db = sqlite3.connect("orders.db", timeout=30)
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        """CREATE TABLE IF NOT EXISTS orders (
             name TEXT PRIMARY KEY, account TEXT NOT NULL, seats INTEGER NOT NULL, job TEXT NOT NULL,
             answer TEXT, refused TEXT)"""
    )
    return db


def make(db, name):
    """Creates the ordered instance once. Every call returns the same answer, with the same password."""
    url = f"https://{name}.app.example"
    login = {"admin_url": f"{url}/admin", "username": "admin", "password": secrets.token_urlsafe(16)}
    answer = json.dumps({"instance_id": f"t-{name}", "app": {"front_end_url": url, **login}})
    db.execute("UPDATE orders SET answer = ? WHERE name = ? AND answer IS NULL", (answer, name))
    return db.execute("SELECT answer FROM orders WHERE name = ?", (name,)).fetchone()[0]


def create(call, db):
    name, seats = call["instance"]["order_biz_id"], int(call["items"].get("seats", "1"))
    db.execute(
        "INSERT INTO orders (name, account, seats, job) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (name, call["account"], seats, call["idempotency_key"]),
    )
    (refused,) = db.execute("SELECT refused FROM orders WHERE name = ?", (name,)).fetchone()
    if refused:
        return REFUSE, json.dumps({"refuse": refused})
    if seats <= ENOUGH:
        return 0, make(db, name)
    return 0, json.dumps({"pending": f"{seats} seats: sales approves it"})


def release(call, db):
    # Remove everything for any value of `maybe_provisioned`, also an order that still waits for approval.
    db.execute("DELETE FROM orders WHERE name = ?", (call["instance"]["order_biz_id"],))
    return 0, "{}"


ACTIONS = {"create": create, "release": release}


def hook():
    call = json.load(sys.stdin)
    if call["action"] in ("renew", "refund-renew", "upgrade", "expire"):
        print("{}")
        return 0
    act = ACTIONS.get(call["action"])
    if act is None:
        print(json.dumps({"refuse": "this hook does not support that"}))
        return REFUSE
    with database() as db:  # commit before the answer
        code, answer = act(call, db)
    print(answer)
    return code


def waiting():
    for name, seats in database().execute("SELECT name, seats FROM orders WHERE answer IS NULL AND refused IS NULL"):
        print(f"{name}\t{seats} seats")
    return 0


def find(db, name):
    row = db.execute("SELECT account, job FROM orders WHERE name = ? AND refused IS NULL", (name,)).fetchone()
    return row or sys.exit(f"no order {name} waits for approval")


def approve(name, why):
    with database() as db:
        account, _ = find(db, name)
        answer = make(db, name)
    # The instance is committed. If the report to spid fails now, run the same command again.
    command = ["spid", "instances", "complete", f"--account={account}", "--answer=-", f"--why={why}", "--", name]
    return subprocess.run(command, input=answer, text=True, check=False).returncode


def refuse(name, why):
    with database() as db:
        _, job = find(db, name)
        db.execute("UPDATE orders SET refused = ? WHERE name = ? AND answer IS NULL", (why, name))
    return subprocess.run(["spid", "jobs", "retry", f"--why={why}", "--", job], check=False).returncode


def main(arguments):
    os.umask(0o077)
    match arguments:
        case ["hook"]:
            return hook()
        case ["list"]:
            return waiting()
        case ["approve", name, why]:
            return approve(name, why)
        case ["refuse", name, why]:
            return refuse(name, why)
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
