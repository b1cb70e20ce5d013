"""Certificates for a SuperLink, and keys by which it knows its SuperNodes.

An authority made here signs one server certificate; SuperNodes and the `flwr` command check the
server against the authority. A SuperNode proves who it is with a key of its own, which is
registered with the SuperLink beforehand. Private files are readable by their owner alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atlas_flwr.errors import ConfigError, ResultError

DAYS = 365
"""How long certificates hold; machines whose clocks differ by a day still agree."""
_KEY = ec.SECP384R1()  # Flower takes NIST curves alone
_PRIVATE, _PUBLIC = 0o600, 0o644


@dataclass(frozen=True)
class Certificates:
    """Where a SuperLink's certificates lie.

    Attributes:
        authority: The authority's certificate, which every SuperNode and `flwr` needs.
        certificate: The server's.
        key: The server's private key.
    """

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path) -> Certificates:
        """Return the names that `write_certificates` gives in a folder."""
        return cls(folder / "ca.pem", folder / "server.pem", folder / "server.key")


def write_certificates(folder: Path, hosts: Sequence[str], days: int = DAYS) -> Certificates:
    """Make an authority and a server certificate for some names and addresses.

    Args:
        folder: Where ``ca.pem``, ``ca.key``, ``server.pem`` and ``server.key`` are written.
        hosts: DNS names and IP addresses under which SuperNodes reach the SuperLink; at least one.
        days: How long both hold.

    Raises:
        ConfigError: No host, or one that is neither a name nor an address.
        ResultError: A file is there already, or the folder can't be written; nothing is replaced.
    """
    names = _alternative_names(hosts)
    files = Certificates.of(folder)
    authority_key, key = ec.generate_private_key(_KEY), ec.generate_private_key(_KEY)
    issuer = _name("atlas-flwr authority")
    authority = (
        _draft(issuer, issuer, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    server = (
        _draft(_name(hosts[0]), issuer, key, days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    _write_all(
        {
            files.authority: (authority.public_bytes(serialization.Encoding.PEM), _PUBLIC),
            folder / "ca.key": (_private_pem(authority_key), _PRIVATE),
            files.certificate: (server.public_bytes(serialization.Encoding.PEM), _PUBLIC),
            files.key: (_private_pem(key), _PRIVATE),
        }
    )
    return files


def write_node_key(path: Path) -> Path:
    """Make a SuperNode's key pair, as `ssh-keygen -t ecdsa -b 384` does.

    Args:
        path: The private key's file; the public one is beside it, with ``.pub``.

    Returns:
        The public key's file, which `flwr supernode register` takes.

    Raises:
        ResultError: A file is there already, or the folder can't be written.
    """
    key = ec.generate_private_key(_KEY)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    told = path.with_name(f"{path.name}.pub")
    _write_all({path: (private, _PRIVATE), told: (public + b"\n", _PUBLIC)})
    return told


def _alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if (
                not host
                or not host.isascii()
                or not host.replace("-", "").replace(".", "").isalnum()
            ):
                raise ConfigError(
                    f"--host: {host!r} is neither a DNS name nor an IP address"
                ) from None
            names.append(x509.DNSName(host))
    if not names:
        raise ConfigError("--host: name at least one host, e.g. --host superlink.example.org")
    return names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    """Return what authority and server have in common."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    """Return a key usage that allows what is named and nothing else."""
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_all(files: dict[Path, tuple[bytes, int]]) -> None:
    """Write new files with their rights from the start; refuse to replace any."""
    for path in files:
        if path.exists():
            raise ResultError(f"{path}: is there already, and keys are not replaced; name another")
    try:
        for path, (data, mode) in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except OSError as error:
        raise ResultError(f"{path}: can't be written ({error.strerror or error})") from error
