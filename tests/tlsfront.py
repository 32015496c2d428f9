"""TLS in front of a server that speaks none, as stunnel or a load balancer puts it there."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer

from certificates import Certificates

from streamproc.dev.process import LOOPBACK


class TlsFront(ThreadingTCPServer):
    """Takes TLS connections at ``port`` and passes what is in them on to ``target``."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, certificates: Certificates, target: int, *, wants_certificate: bool) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificates.server)
        if wants_certificate:
            self.context.load_verify_locations(certificates.ca)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.target = target
        self.port: int = self.server_address[1]
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseRequestHandler):
    server: TlsFront

    def handle(self) -> None:
        # Blocking sockets: asyncio's servers close without saying why.
        try:
            # Of a copy: a socket that is wrapped in vain is closed.
            front = self.server.context.wrap_socket(self.request.dup(), server_side=True)
        except OSError:
            self._linger()
            return
        with (
            contextlib.suppress(OSError),
            front,
            socket.create_connection((LOOPBACK, self.server.target)) as behind,
        ):
            _pass_on(front, behind)

    def _linger(self) -> None:
        """Read what the client has sent meanwhile: closing at once would lose our alert."""
        with contextlib.suppress(OSError):
            while self.request.recv(65536):
                pass


def _pass_on(front: ssl.SSLSocket, behind: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([front, behind], [], [])
        if front in ready:
            while True:
                if not (data := front.recv(65536)):
                    return
                behind.sendall(data)
                if not front.pending():
                    break
        if behind in ready:
            if not (data := behind.recv(65536)):
                return
            front.sendall(data)
