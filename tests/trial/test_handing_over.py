"""A program gets the sockets that its parent bound, under their names, whatever their numbers were."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

from billing.trial.handing_over import handed_over_by

PROGRAM = """
import json, os
from billing.service.systemd import handed_over
print(json.dumps([[name, one.getsockname()[1]] for name, one in handed_over(os.environ)]))
"""


def test_sockets_arrive_under_their_names() -> None:
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("rpc", "admin", "third")}
    ports = [[name, listener.getsockname()[1]] for name, listener in sockets.items()]
    command = handed_over_by(sockets, [sys.executable, "-c", PROGRAM])
    result = subprocess.run(
        command,
        pass_fds=[listener.fileno() for listener in sockets.values()],
        capture_output=True,
        text=True,
        check=False,
    )
    for listener in sockets.values():
        listener.close()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ports
