#!/usr/bin/env python3
"""The application asks spid if a customer may use the service. Python 3.9 or newer, standard library only.

    entitlement.py URL TOKEN-FILE INSTANCE

It prints a line whenever the answer changes. It waits for changes instead of asking again and again, and it survives a
restart of spid: while spid is away the last answer stands, until its term or the time for a late renewal is over.

    $ entitlement.py http://127.0.0.1:8082 /etc/spid/app-token 1001
    1001: entitled (active)
"""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime, timezone

WAIT_S = 30


class Entitlement:
    """The last known answer about one instance."""

    def __init__(self, url, token, instance):
        self.url = f"{url.rstrip('/')}/v1/entitlements/{urllib.parse.quote(instance, safe='')}"
        self.token = token
        self.answer = None
        self.tag = None

    def refresh(self):
        """Waits for another answer than the known one, for at most 30 s. Returns True if there is one."""
        wait = f"?wait={WAIT_S}s" if self.tag else ""
        headers = {"Authorization": f"Bearer {self.token}"}
        if self.tag:
            headers["If-None-Match"] = self.tag
        request = urllib.request.Request(self.url + wait, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S + 10) as response:
                self.tag = response.headers["ETag"]
                self.answer = json.load(response)
                return True
        except urllib.error.HTTPError as error:
            if error.code == 304:
                return False
            # A refusal says why. 404: there is no such instance, which is not the same as "not entitled".
            raise

    def is_entitled(self):
        """Decides by the last answer. Call it as often as you like: it asks nobody."""
        if self.answer is None or not self.answer["entitled"]:
            return False
        # While spid is away, an answer is good until it would have changed.
        until = self.answer["grace_until"] or self.answer["expires_on"]
        return until is None or datetime.now(timezone.utc) < datetime.fromisoformat(until.replace("Z", "+00:00"))


def main():
    url, token_file, instance = sys.argv[1:4]
    with open(token_file, encoding="utf-8") as file:
        token = file.read().strip()
    entitlement = Entitlement(url, token, instance)
    told = None
    while True:
        try:
            entitlement.refresh()
            word = "entitled" if entitlement.is_entitled() else "not entitled"
            line = f"{instance}: {word} ({entitlement.answer['reason']})"
            # The answer also changes in members that are not shown here, for example when a callback arrives.
            if line != told:
                print(line, flush=True)
                told = line
        except urllib.error.HTTPError as error:
            print(f"{instance}: {json.load(error)['error']}", file=sys.stderr, flush=True)
            if error.code in (401, 403):
                return 1
            time.sleep(5)
        except OSError:
            # spid restarts: ask again soon. The last answer stands.
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
