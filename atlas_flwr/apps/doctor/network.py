"""Ports, and whether the hub answers."""

from __future__ import annotations

import errno
import socket
import time
from email.utils import parsedate_to_datetime

from atlas_flwr.apps.doctor.checks import Check, fail, ok, warn
from atlas_flwr.apps.redact import without_secrets

# Flower's own, for a SuperLink that several machines reach (docs/deploy.md).
PORTS = {9091: "ServerApps", 9092: "SuperNodes", 9093: "flwr run"}
HUB_SECONDS = 3.0
_CLOCK_SECONDS = 300


def ports() -> list[Check]:
    """Look whether a port can be had on this machine, and Flower's own are free."""
    try:
        _bind(0)
    except OSError as error:
        told = f"no port can be opened on this machine ({error.strerror})"
        return [fail("ports", told, "allow connections to 127.0.0.1, or use --engine inline")]
    taken = [port for port in PORTS if not _is_free(port)]
    if taken:
        names = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
        mend = "nothing for atlas run and atlas up; a SuperLink of your own needs other addresses"
        return [warn("ports", f"taken: {names}", mend)]
    return [ok("ports", f"free, Flower's own too ({', '.join(map(str, PORTS))})")]


def _is_free(port: int) -> bool:
    try:
        _bind(port)
    except OSError as error:
        return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


def _bind(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def hub() -> list[Check]:
    """Ask the hub, by one HEAD, whether it answers; offline mode is respected."""
    # Here: the doctor is asked when a package is broken, too.
    from huggingface_hub import constants, get_session  # noqa: PLC0415

    where = without_secrets(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return [ok("hub", "switched off by HF_HUB_OFFLINE; models in its cache can be used")]
    mend = (
        "the packaged minilm, bbc and tweets need no hub; behind a proxy set HTTPS_PROXY, for a "
        "mirror HF_ENDPOINT"
    )
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS, follow_redirects=True)
    except Exception as error:  # which HTTP library it is depends on the hub client's version
        told = without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])
        return [warn("hub", f"{where} does not answer ({told})", mend)]
    if answer.status_code >= 400:
        return [warn("hub", f"{where} answers {answer.status_code}", mend)]
    return [ok("hub", f"{where} answers"), *_skew(answer.headers.get("date"))]


def _skew(date: str | None) -> list[Check]:
    """Compare the clock with the hub's."""
    if date is None:
        return []
    ahead = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(ahead) <= _CLOCK_SECONDS:
        return []
    told = f"{abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} the hub's"
    return [warn("clock", told, "set it: TLS and tokens depend on it")]
