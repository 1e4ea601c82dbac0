"""A cutoff endpoint out of Python's standard library: `plain_server.py PORT PROTOCOL`, one connection at a time."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = sys.argv[2]

    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        """Says nothing."""


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
