"""Certificates that OpenSSL accepts for the hosts they name, and keys that Flower accepts."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key

from atlas_flwr.apps.certs import write_keys
from atlas_flwr.engine.deploy_keys import Certificates, write_certificates, write_node_key
from atlas_flwr.errors import ConfigError, ResultError


def handshake(files: Certificates, host: str, authority: Path) -> None:
    """Let OpenSSL shake hands in memory, as a client that checks the host and the chain."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() == "TLSv1.3"


def test_the_certificate_holds_for_its_hosts_under_its_authority_alone(tmp_path: Path) -> None:
    hosts = ["127.0.0.1", "superlink.example.org", "::1"]
    files = write_certificates(tmp_path / "a", hosts)
    for host in hosts:
        handshake(files, host, files.authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(files, "127.0.0.2", files.authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files, "example.org", files.authority)
    other = write_certificates(tmp_path / "b", hosts)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)signature|unable to get local"):
        handshake(files, "127.0.0.1", other.authority)
    found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert (found.not_valid_after_utc - found.not_valid_before_utc).days == 366


def test_flower_takes_the_keys_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    public = write_node_key(tmp_path / "keys" / "node-0")
    private = load_ssh_private_key((tmp_path / "keys" / "node-0").read_bytes(), None)
    assert try_load_public_key(public)
    assert private.public_key().curve.name == "secp384r1"
    files = write_certificates(tmp_path / "keys", ["localhost"])
    for secret in (files.key, tmp_path / "keys" / "ca.key", tmp_path / "keys" / "node-0"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_nothing_is_replaced(tmp_path: Path) -> None:
    first = write_keys(tmp_path, ["localhost"], nodes=1)
    before = {path: path.read_bytes() for path in first}
    with pytest.raises(ResultError, match="is there already"):
        write_keys(tmp_path, ["localhost"])
    more = write_keys(tmp_path, [], nodes=3)  # SuperNodes that come later
    assert [path.name for path in more] == ["node-1", "node-1.pub", "node-2", "node-2.pub"]
    assert before == {path: path.read_bytes() for path in first}


@pytest.mark.parametrize("hosts", [[], ["a b"], ["http://x"], [""]])
def test_hosts_that_are_none_are_refused(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--host"):
        write_keys(tmp_path, hosts)
    assert not list(tmp_path.iterdir())


def test_the_serverapp_beside_the_superlink_trusts_it_too(tmp_path: Path) -> None:
    """Flower starts it with the loopback address where the SuperLink is bound to 0.0.0.0 or ::."""
    hosts = ["superlink.example.org", "127.0.0.1"]
    write_keys(tmp_path, hosts)
    files = Certificates.of(tmp_path)
    for host in (*hosts, "::1"):
        handshake(files, host, files.authority)


def test_a_key_that_is_there_stops_all_before_any_is_written(tmp_path: Path) -> None:
    """Else the authority would be in the way of the next try."""
    first = write_keys(tmp_path, [], nodes=1)
    with pytest.raises(ResultError, match="node-0: is there already"):
        write_keys(tmp_path, ["localhost"], nodes=2)
    assert sorted(tmp_path.iterdir()) == sorted(first)
