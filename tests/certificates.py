"""Certificates for tests, made by openssl: a CA, a server's, a client's."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

KEY_PASSWORD = "key-word-4711"


@dataclass(frozen=True)
class Certificates:
    """PEM files of a CA, and of a server and a client that it has signed."""

    folder: Path

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def server(self) -> str:
        """Certificate of 127.0.0.1 (and of no name), with its key."""
        return str(self.folder / "server.pem")

    @property
    def client(self) -> str:
        return str(self.folder / "client.pem")

    @property
    def client_key(self) -> str:
        """The client's key, encrypted with ``KEY_PASSWORD``."""
        return str(self.folder / "client.key")


def make_certificates(folder: Path) -> Certificates:
    """Make a CA and what it signs."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder)
    _openssl(
        folder,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "2", "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    _sign(folder, "server", "IP:127.0.0.1", "-nodes")
    _sign(folder, "client", "DNS:client", "-passout", f"pass:{KEY_PASSWORD}")
    server = folder / "server.pem"
    server.write_text((folder / "server.key").read_text() + server.read_text())
    return made


def _sign(folder: Path, name: str, names: str, *key_options: str) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    request = ("req", "-new", *curve, *key_options, "-subj", f"/CN={name}")
    _openssl(folder, *request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    # With what Python 3.13 asks for (VERIFY_X509_STRICT).
    (folder / "extensions").write_text(
        f"subjectAltName={names}\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    _openssl(
        folder,
        *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem"),
    )


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
