"""A reward server of the standard library alone that commits the fault which a file named ``fault`` asks for.

It speaks the protocol of ``grpaint reward serve``; ``python faulty_server.py`` in a folder of its own prints its port.
The score of an image is its mean, with a pattern over the rows; faults begin at the call that ``after`` counts.
"""

import json
import struct
import sys
import threading
import time
from array import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

IDENTITY = sys.argv[1] if len(sys.argv) > 1 else "0123456789abcdef"
TOKEN = sys.argv[2] if len(sys.argv) > 2 else ""


def scores_of(body):
    (size,) = struct.unpack("<Q", body[:8])
    about = json.loads(body[8 : 8 + size])["images"]
    first, last = about["data_offsets"]
    values = array("f", body[8 + size + first : 8 + size + last])
    each = len(values) // about["shape"][0]
    rows = [values[i * each : (i + 1) * each] for i in range(about["shape"][0])]
    return [sum(row) / each + 0.1 * (i % 4) for i, row in enumerate(rows)]


COUNTING = threading.Lock()


def count():
    """The number of this call; the file that tells it to others is never seen half written."""
    with COUNTING:
        calls = int(Path("calls").read_text()) + 1 if Path("calls").exists() else 1
        Path("calls.new").write_text(str(calls))
        Path("calls.new").rename("calls")
    return calls


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"name": "mean", "version": "test", "identity": IDENTITY})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        calls = count()
        fault, _, after = Path("fault").read_text().partition(" ") if Path("fault").exists() else ("", "", "0")
        if fault and calls > int(after or 0):
            getattr(self, fault)(scores_of(body))
            return
        if TOKEN and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply({"error": "wrong or no token"}, 401)
            return
        self.reply({"scores": scores_of(body), "identity": IDENTITY})

    def reply(self, answer, status=200):
        self.raw(json.dumps(answer).encode(), status)

    def raw(self, body, status=200, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def error(self, scores):
        self.reply({"error": "CUDA error:\nan illegal memory access"}, 500)

    def hang(self, scores):
        time.sleep(3600)

    def drip(self, scores):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)

    def drip_header(self, scores):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def half(self, scores):
        self.raw(b'{"scores": [0.1, 0.', length=1000)

    def gone(self, scores):
        self.close_connection = True

    def nan(self, scores):
        self.reply({"scores": [float("nan"), *scores[1:]], "identity": IDENTITY})

    def text(self, scores):
        self.reply({"scores": ["high", *scores[1:]], "identity": IDENTITY})

    def count(self, scores):
        self.reply({"scores": scores[:-1], "identity": IDENTITY})

    def garbage(self, scores):
        self.raw(b"<html><body>502 Bad Gateway</body></html>")

    def nothttp(self, scores):
        self.wfile.write(b"\x80\x04\x95\x00\x00\x00garbage\r\n\r\n")

    def deep(self, scores):
        self.raw(b"[" * 60_000)

    def huge(self, scores):
        self.raw(b"", length=1 << 30)
        try:
            for _ in range(1024):
                self.wfile.write(bytes(1 << 20))
        except OSError:
            Path("cut").write_text("the client did not read on")

    def other(self, scores):
        self.reply({"scores": scores, "identity": "another"})

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3]) if len(sys.argv) > 3 else 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
