#!/usr/bin/env python3
"""Provisioning hook in Python, standard library only: one file per instance.

    [[hook]]
    name = "provision"
    exec = { command = ["/opt/app/exec_hook.py", "/var/lib/my-app"] }

It reads the call as JSON from standard input, and writes the answer as JSON to standard output and remarks to
standard error. Exit 0: done. Exit 65: refused, do not try again. Any other code: try again later.
"""

import fcntl
import json
import os
import pathlib
import re
import secrets
import sys

REFUSE, RETRY = 65, 75
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
    for name, change in call["changes"].items():
        print(f"{name}: {change['from']} -> {change['to']}", file=sys.stderr)
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


def main():
    os.umask(0o077)
    call = json.load(sys.stdin)
    act = ACTIONS.get(call["action"])
    if act is None:
        print(json.dumps({"refuse": "this hook does not support that"}))
        return REFUSE
    name = call["instance"]["order_biz_id"] or ""
    if not NAME.fullmatch(name):
        print("the instance has no name that could be a file", file=sys.stderr)
        return RETRY
    root = pathlib.Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    # One process at a time, because a killed attempt can overlap with the next one. The lock ends with the process.
    lock = open(root / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
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
    print(json.dumps(answers[key]))
    return REFUSE if "refuse" in answers[key] else 0


if __name__ == "__main__":
    sys.exit(main())
