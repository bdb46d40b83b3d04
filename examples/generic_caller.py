#!/usr/bin/env python3
"""Client for a `generic` endpoint of spid. Python 3, standard library only.

    generic_caller.py --url http://127.0.0.1:8080/generic --key-file key.txt \\
        create order_biz_id=ob-1 buyer=acme item.seats=5

The first word is the action. NAME=VALUE sets a field of docs/dialects/generic.md, and item.NAME=VALUE sets a
billing item. The key is in a file, because every user of the machine can read the arguments of every process.

It prints the JSON of the answer. Exit codes: 0 applied, 75 call again (not-yet, held, unavailable), 1 refused or
rejected, 69 no answer.
"""

import argparse
import hashlib
import hmac
import json
import sys
import time
import urllib.error
import urllib.request

CALL_AGAIN = {"not-yet", "held", "unavailable"}


def read_key(path):
    with open(path, "rb") as file:
        key = file.read().rstrip(b"\r\n")
    if not key:
        sys.exit(f"{path}: the key is empty")
    return key


def message(action, fields):
    """Returns the JSON object: fields unchanged, and billing items in `items`."""
    body = {"action": action}
    items = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or not name:
            sys.exit(f"{field}: expected NAME=VALUE")
        target, name = (items, name[len("item."):]) if name.startswith("item.") else (body, name)
        if name in target:
            sys.exit(f"{name}: given twice")
        target[name] = value
    if items:
        body["items"] = items
    return json.dumps(body, ensure_ascii=False).encode("utf-8")


def signature(key, timestamp, body):
    """Returns the hex HMAC-SHA256 over the timestamp, a dot, and exactly the bytes to send."""
    return hmac.new(key, timestamp.encode("ascii") + b"." + body, hashlib.sha256).hexdigest()


def post(url, key, body):
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "spid-timestamp": timestamp,
        "spid-signature": signature(key, timestamp, body),
    }
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        return error.read()  # the request was denied: the body has the reason
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        sys.exit(69)


def exit_status(answer):
    status = answer.get("status")
    if status == "applied":
        return 0
    return 75 if status in CALL_AGAIN else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key-file", required=True, metavar="FILE")
    parser.add_argument("action")
    parser.add_argument("fields", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_args()

    body = message(arguments.action, arguments.fields)
    text = post(arguments.url, read_key(arguments.key_file), body)
    try:
        answer = json.loads(text)
    except ValueError:
        print(text.decode("utf-8", "replace"), file=sys.stderr)
        return 1
    print(json.dumps(answer, ensure_ascii=False, indent=2))
    return exit_status(answer)


if __name__ == "__main__":
    sys.exit(main())
