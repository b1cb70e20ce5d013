"""`atlas certs`: an authority, the SuperLink's certificate and keys of SuperNodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.engine.deploy_keys import DAYS, write_certificates, write_node_key
from atlas_flwr.errors import ConfigError, ResultError


def write_keys(folder: Path, hosts: Sequence[str], nodes: int = 0, days: int = DAYS) -> list[Path]:
    """Write what a SuperLink needs for TLS, and key pairs for some SuperNodes.

    An authority that is there already is kept: then only keys are made, for SuperNodes that come
    later.

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
    written: list[Path] = []
    if hosts:
        files = write_certificates(folder, hosts, days)
        written += [files.authority, folder / "ca.key", files.certificate, files.key]
    for number in range(nodes):
        path = folder / f"node-{number}"
        if path.exists():
            if hosts:
                raise ResultError(f"{path}: is there already, and keys are not replaced")
            continue
        written += [path, write_node_key(path)]
    return written
