#!/usr/bin/env python3
"""A hook that tells an nginx at the edge who may in: a `map` of host to state. Standard library only.

    [[hook]]
    name = "provision"
    exec = { command = [
        "/opt/app/nginx_entitlements.py", "/var/lib/entitlements/hosts.map", "app.example", "127.0.0.1:8089",
        "nginx",        # how to call nginx; perhaps "sudo", "nginx"
    ] }

nginx_entitlements.conf is nginx's half of it. What an instance is called comes from outside, so its host
is a digest: nothing a buyer can write reaches the file.

* The file is written whole or not at all, and is on the disk before nginx hears of it.
* nginx itself says which version of the file it has loaded. While that is not the one on the disk, a
  reload is owed, whoever was killed before it could ask for one; the next call that comes by asks.
* Orders that come together share one reload: all write first, then one of them reloads for all.
* A configuration that nginx does not like is not loaded. The order waits; nginx goes on with the old one.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import time

REFUSE, RETRY = 65, 75
SETTLE_S = 0.2  # how long a reload waits for more orders to come along
LOOKS, LOOK_S = 10, 0.03  # the workers of before a reload go on accepting for a tenth of a second
VERSION = "version.invalid"  # no host can be called so: RFC 2606
LINE = re.compile(r'"([a-z0-9.-]+)" ([a-z0-9]+);')

# What becomes of a host. What is not here (an upgrade, another end of the term) is nothing to the edge.
STATES = {"create": "active", "renew": "active", "expire": "frozen", "release": None}
UNCHANGED = {"upgrade", "refund-renew"}


@contextlib.contextmanager
def lock(path):
    """Only one at a time; the system opens the lock of whoever is killed."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path):
    """The hosts and their states. A line that is not ours is an error: to overlook it would lock a buyer out."""
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = [LINE.fullmatch(line) for line in lines]
    if None in parsed:
        sys.exit(f"{path}: line {parsed.index(None) + 1} was not written by this hook")
    return dict(match.groups() for match in parsed)


def write(path, hosts):
    """Writes the file whole or not at all, and does not return before it is on the disk."""
    lines = [f'"{host}" {state};\n' for host, state in sorted(hosts.items()) if host != VERSION]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    new = path.with_suffix(".new")
    with open(new, "w") as file:
        file.writelines([*lines, f'"{VERSION}" {digest};\n'])
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def entitle(path, host, state):
    with lock(path.with_suffix(".lock")):
        hosts = read(path)
        if hosts.get(host) == state and VERSION in hosts:
            return
        hosts[host] = state
        write(path, {host: state for host, state in hosts.items() if state})


def loaded(address):
    """The version nginx works by."""
    connection = http.client.HTTPConnection(address, timeout=5)
    connection.request("GET", "/", headers={"Host": VERSION})
    version = connection.getresponse().read().decode()
    connection.close()
    return version


def is_loaded(path, address):
    return loaded(address) == read(path)[VERSION]


def reload(path, address, nginx):
    with lock(path.with_suffix(".reload-lock")):
        if is_loaded(path, address):
            return  # whoever reloaded while we waited took our line along
        time.sleep(SETTLE_S)
        with lock(path.with_suffix(".lock")):  # what nginx reads is what we compare with
            subprocess.run([*nginx, "-t", "-q"], check=True)
            subprocess.run([*nginx, "-s", "reload"], check=True)
            looks = 0
            while looks < LOOKS:  # nginx reloads in its own time; spid's deadline ends a vain wait
                looks = looks + 1 if is_loaded(path, address) else 0
                time.sleep(LOOK_S)


def host_of(instance, domain):
    sold = f"{instance['account']}\0{instance['order_biz_id']}"  # no name holds a NUL
    return f"t{hashlib.sha256(sold.encode()).hexdigest()[:20]}.{domain}"


def main():
    call = json.load(sys.stdin)
    action = call["action"]
    path, domain, address, nginx = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    if action not in STATES and action not in UNCHANGED:
        print(json.dumps({"refuse": "this hook does not support that"}))
        return REFUSE
    host = host_of(call["instance"], domain)
    try:
        if action in STATES:
            entitle(path, host, STATES[action])
            reload(path, address, nginx)
    except (OSError, http.client.HTTPException, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return RETRY
    print(json.dumps({"app": {"front_end_url": f"https://{host}"}} if action == "create" else {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
