"""Servers that are not what a DSN says: they answer a greeting in their own way, on loopback.

They run in a thread, so that a test in this process and a program beside it can both meet them.
"""

import contextlib
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

TLS_REQUEST = 80_877_103

Answer = Callable[[BinaryIO], bytes]


def old_postgresql(version: str) -> bytes:
    """Return what a server of this version says to whoever it lets in."""
    parameters = {
        "server_version": version,
        "server_encoding": "UTF8",
        "client_encoding": "UTF8",
        "integer_datetimes": "on",
        "standard_conforming_strings": "on",
    }
    said = [_message(b"R", struct.pack("!i", 0))]
    said += [_message(b"S", _text(name) + _text(value)) for name, value in parameters.items()]
    said += [_message(b"K", struct.pack("!ii", 1, 2)), _message(b"Z", b"I")]
    return b"".join(said)


def refusal_of(state: str, text: str) -> bytes:
    """Return a FATAL error."""
    fields = {b"S": "FATAL", b"V": "FATAL", b"C": state, b"M": text}
    body = b"".join(name + _text(value) for name, value in fields.items())
    return _message(b"E", body + b"\0")


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Lend a port where every greeting is answered so; a question for TLS, with no."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.read(8):
                length, code = struct.unpack("!ii", head)
                self.rfile.read(length - 8)
                if code == TLS_REQUEST and answer[:1] in {b"R", b"E"}:
                    self.wfile.write(b"N")
                    continue
                self.wfile.write(answer)
                self.rfile.read(1)  # until they hang up, or say goodbye
                return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield listener.server_address[1]
        finally:
            listener.shutdown()
            thread.join()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _text(value: str) -> bytes:
    return value.encode() + b"\0"
