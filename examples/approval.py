#!/usr/bin/env python3
"""Orders that a person approves: the hook says `pending`, and somebody finishes them. Python, standard library only.

    [[hook]]
    name = "provision"
    exec = { command = ["/opt/app/approval.py", "hook"], working_dir = "/var/lib/my-app" }

    approval.py hook                what spid calls
    approval.py list                what waits for somebody
    approval.py approve ORDER WHY   makes it, and tells spid
    approval.py refuse ORDER WHY    has the hook asked again, which refuses it then

Up to 100 seats are made at once; more wait for sales. The marketplace hears "not yet" meanwhile and goes on
calling, and it stops after 120 calls (`spid held list` shows how many are spent): so this is for hours.

`approve` runs `spid instances complete`, `refuse` runs `spid jobs retry`: as spid's user, with SPID_CONFIG=/etc/spid/spid.toml, in the folder that
`working_dir` names.
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
    """Makes what was ordered, once; the same answer, with the same password, however often it is asked for."""
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
    # `maybe_provisioned` or not: what is there goes, and a request that nobody has decided goes with it.
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
    with database() as db:  # committed before the answer is given
        code, answer = act(call, db)
    print(answer)
    return code


def waiting():
    for name, seats in database().execute("SELECT name, seats FROM orders WHERE answer IS NULL AND refused IS NULL"):
        print(f"{name}\t{seats} seats")
    return 0


def find(db, name):
    row = db.execute("SELECT account, job FROM orders WHERE name = ? AND refused IS NULL", (name,)).fetchone()
    return row or sys.exit(f"no order {name} waits for anybody")


def approve(name, why):
    with database() as db:
        account, _ = find(db, name)
        answer = make(db, name)
    # Made and committed; if spid cannot be told now, the same command again tells it.
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
