"""A receiver of cutoffs, restores and notices on Flask: switches machines off and on, and reports rate 0.

    CUTOFF_SECRET=whsec_… PORT=8090 python flask_receiver.py

The daemon has `cutoff.url = "http://127.0.0.1:8090/cutoff"`, `cutoff.restore_url = "http://127.0.0.1:8090/restore"` and
`notify.url = "http://127.0.0.1:8090/notices"`.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from flask import Flask, request

from billing.client import BillingError, SyncClient
from billing.client.receiver import NotGenuine, Receiver, wsgi_target

application = Flask(__name__)
receiver = Receiver(os.environ["CUTOFF_SECRET"])  # with a mapping onto your database, so that seq is not forgotten
turn = threading.Lock()  # one call at a time: simple, and right; lock by user where switching off takes long
client = SyncClient(os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311"))


def say(line: str) -> None:
    """Prints a line whole: `print` writes its end apart, and another thread may come between."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def switch_off(user: str) -> None:
    """Stops the user's machines, then says that they cost nothing any more. Harmless to do twice."""
    say(f"off {user}")  # here the machines are stopped
    for line in client.get_account(user).rates:
        client.set_rate(user, "0", resource=line)


@application.route("/cutoff", methods=["GET", "POST"])
@application.route("/restore", methods=["GET", "POST"])
def take_call() -> tuple[str, int]:
    """A cutoff, or the restore of one."""
    try:
        call = receiver.call(wsgi_target(request.environ), request.headers, request.get_data(), now_s=time.time())
    except NotGenuine:
        return "", 401
    with turn:
        if receiver.is_due(call):
            if call.is_restore:
                say(f"on {call.user_id}")  # here the machines are started, and their rates reported
            else:
                try:
                    switch_off(call.user_id)
                except BillingError as error:
                    return str(error), 503  # the daemon calls again
            receiver.done(call)
    return "", 204


@application.post("/notices")
def take_notice() -> tuple[str, int]:
    """What happened to an account."""
    try:
        notice = receiver.notice(request.headers, request.get_data(), now_s=time.time())
    except NotGenuine:
        return "", 401
    if receiver.is_due(notice):
        say(f"notice {notice.type} {notice.data['user_id']}")  # here the user is written to
        receiver.done(notice)
    return "", 204


if __name__ == "__main__":
    application.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
