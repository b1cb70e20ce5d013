"""`atlas certs`: an authority, the SuperLink's certificate and keys of SuperNodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.engine.deploy_keys import DAYS, write_certificates, write_node_key
from atlas_flwr.errors import ConfigError, ResultError

OWN_ADDRESSES = ("127.0.0.1", "::1")
"""Where a SuperLink bound to 0.0.0.0 or :: is called by what starts its ServerApps, over TLS too:
under a certificate without them that program dies, and every run stays pending."""


def write_keys(folder: Path, hosts: Sequence[str], nodes: int = 0, days: int = DAYS) -> list[Path]:
    """Write what a SuperLink needs for TLS, and key pairs for some SuperNodes.

    The certificate holds for loopback as well as for the hosts. An authority that is there already
    is kept: then only keys are made, for SuperNodes that come later.

    Args:
        folder: Where.
        hosts: Names and addresses of the SuperLink.
        nodes: How many SuperNodes; their keys are ``node-<i>`` and ``node-<i>.pub``.
        days: How long certificates hold.

    Returns:
        The files that were written.

    Raises:
        ConfigError: Neither hosts nor nodes, or a host that is none.
        ResultError: A file is there already, or can't be written.
    """
    if not hosts and not nodes:
        raise ConfigError("--host: name the SuperLink's, or --nodes for keys alone")
    paths = [folder / f"node-{number}" for number in range(nodes)]
    if hosts and (there := [path for path in paths if path.exists()]):
        raise ResultError(f"{there[0]}: is there already, and keys are not replaced")
    written: list[Path] = []
    if hosts:
        names = [*hosts, *(own for own in OWN_ADDRESSES if own not in hosts)]
        files = write_certificates(folder, names, days)
        written += [files.authority, folder / "ca.key", files.certificate, files.key]
    for path in paths:
        if not path.exists():
            written += [path, write_node_key(path)]
    return written
