#!/usr/bin/env python3
"""Hook for access control at an nginx: a `map` of host to state. Python, standard library only.

    [[hook]]
    name = "provision"
    exec = { command = [
        "/opt/app/nginx_entitlements.py", "/var/lib/entitlements/hosts.map", "app.example", "127.0.0.1:8089",
        "nginx",        # the command for nginx, for example "sudo", "nginx"
    ] }

nginx_entitlements.conf is the configuration of nginx. The name of an instance comes from outside, so its host is a
digest of the name: no text of a buyer gets into the file.

* The file is written completely or not at all, and is on the disk before nginx reloads.
* nginx reports the version of the file that it has loaded. If this is not the version on the disk, a reload is due,
  for example because an attempt was killed before its reload. The next call then reloads.
* Concurrent orders share one reload: all write first, then one of them reloads for all.
* nginx does not load an invalid configuration. The order waits, and nginx keeps the old configuration.
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
SETTLE_S = 0.2  # time that a reload waits for more orders, in seconds
LOOKS, LOOK_S = 10, 0.03  # old workers accept connections for 0.1 s after a reload
VERSION = "version.invalid"  # a name that no host can have: RFC 2606
LINE = re.compile(r'"([a-z0-9.-]+)" ([a-z0-9]+);')

# New state of a host, by action. Other actions (an upgrade, for example) do not change access.
STATES = {"create": "active", "renew": "active", "expire": "frozen", "release": None}
UNCHANGED = {"upgrade", "refund-renew"}


@contextlib.contextmanager
def lock(path):
    """Lock for one process at a time. The system releases it if the process is killed."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path):
    """Returns the hosts and their states. An unknown line is an error, because skipping it could lock a buyer out."""
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = [LINE.fullmatch(line) for line in lines]
    if None in parsed:
        sys.exit(f"{path}: line {parsed.index(None) + 1} was not written by this hook")
    return dict(match.groups() for match in parsed)


def write(path, hosts):
    """Writes the complete file or nothing, and returns when it is on the disk."""
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
    """Returns the version that nginx has loaded."""
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
            return  # another process has reloaded while we waited, with our line
        time.sleep(SETTLE_S)
        with lock(path.with_suffix(".lock")):  # nginx must read the file that we compare with
            subprocess.run([*nginx, "-t", "-q"], check=True)
            subprocess.run([*nginx, "-s", "reload"], check=True)
            looks = 0
            while looks < LOOKS:  # a reload takes some time; spid's deadline ends a useless wait
                looks = looks + 1 if is_loaded(path, address) else 0
                time.sleep(LOOK_S)


def host_of(instance, domain):
    sold = f"{instance['account']}\0{instance['order_biz_id']}"  # names contain no NUL
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
