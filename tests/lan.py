"""Hosts on one machine: network namespaces in a star, each with an /srv/atlas of its own.

Every client has one link, to the server, which forwards nothing: clients reach nobody else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SERVER = "10.99.255.1"
LOOPBACK = ("127.", "[::1]", "[::ffff:127.")
# In the mount namespace that `ip netns exec` gives: the host's own /srv/atlas and /etc/hosts, and
# nothing where the other hosts' folders and the tasks that the rows were dealt from lie.
_OWN_DISK = """
mount -t tmpfs tmpfs /srv && mkdir /srv/atlas && mount --bind "$1" /srv/atlas || exit 96
mount --bind "$2" /etc/hosts && shift 2 || exit 96
while [ "$1" != -- ]; do mount -t tmpfs tmpfs "$1" && shift || exit 96; done
shift && exec "$@"
"""
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
_PROBE = 4321
_LISTEN = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    server.accept()
"""


@dataclass
class Host:
    """A network namespace and a folder.

    Attributes:
        namespace: Its name.
        disk: What it sees as /srv/atlas.
        address: Under which it is reached.
        names: Its /etc/hosts.
        hidden: Folders that are empty for its programs.
        heard: Addresses on which something listened that is not loopback, and the programs.
        links: Local and peer address of every connection that was not over loopback.
    """

    namespace: str
    disk: Path
    address: str
    names: Path
    hidden: Sequence[Path]
    heard: set[str] = field(default_factory=set)
    links: set[tuple[str, str]] = field(default_factory=set)

    def words(self, *command: str) -> list[str]:
        """Return the command that runs a command here."""
        inside = [str(self.disk), str(self.names), *map(str, self.hidden), "--", *command]
        ip = shutil.which("ip")
        assert ip is not None
        return [ip, "netns", "exec", self.namespace, "/bin/sh", "-c", _OWN_DISK, "host", *inside]

    def reaches(self, address: str, port: int) -> bool:
        """Say whether a connection to an address is made within 2 s."""
        words = self.words(sys.executable, "-I", "-c", _CONNECT, address, str(port))
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done
        return done.returncode == 0

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Have a program wait for one connection on every address of the host; give the port."""
        words = self.words(sys.executable, "-I", "-c", _LISTEN, str(_PROBE))
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
            try:
                assert waiting.stdout is not None
                assert waiting.stdout.readline() == "ready\n"
                yield _PROBE
            finally:
                waiting.kill()

    def look(self) -> None:
        """Note who listens and who is connected, but for loopback."""
        for line in _ip("netns", "exec", self.namespace, "ss", "-tuanpH").splitlines():
            kind, state, _, _, mine, other, *program = line.split()
            if mine.startswith(LOOPBACK) or mine.endswith(f":{_PROBE}"):
                continue
            if state in ("LISTEN", "UNCONN"):
                self.heard.add(" ".join([kind, mine, *program]))
            else:
                self.links.add((mine, other))


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@contextmanager
def hosts(folder: Path, clients: int, hidden: Sequence[Path]) -> Iterator[list[Host]]:
    """Give a server and its clients; remove the namespaces, and with them all links, at the end.

    Args:
        folder: Where their disks are made.
        clients: How many clients.
        hidden: Folders of this machine that no host sees.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "ss", "mount"))):
        pytest.skip("network namespaces need root and the programs ip, ss and mount")
    disks, names = folder / "disks", folder / "hosts"
    names.write_text(f"127.0.0.1 localhost\n{SERVER} superlink.example.org\n")
    made: list[Host] = []
    with ExitStack() as stack:
        for number in range(clients + 1):
            told = "link" if number == 0 else f"node-{number - 1}"
            (disks / told).mkdir(parents=True)
            address = SERVER if number == 0 else f"10.99.{number - 1}.2"
            name = f"atlas-{os.getpid()}-{told}"
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            stack.callback(_ip, "netns", "del", name)
            made.append(Host(name, disks / told, address, names, [disks, *hidden]))
            _ip("-n", name, "link", "set", "lo", "up")
        _wire(*made)
        yield made


def _wire(server: Host, *clients: Host) -> None:
    """Give the server its address and each client a link to it, over which all else would go."""
    _ip("-n", server.namespace, "addr", "add", f"{SERVER}/32", "dev", "lo")
    _ip("netns", "exec", server.namespace, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    for number, client in enumerate(clients):
        gate = f"10.99.{number}.1"
        pair = ("type", "veth", "peer", "name", "uplink", "netns", client.namespace)
        _ip("link", "add", f"down{number}", "netns", server.namespace, *pair)
        _ip("-n", server.namespace, "addr", "add", f"{gate}/30", "dev", f"down{number}")
        _ip("-n", server.namespace, "link", "set", f"down{number}", "up")
        _ip("-n", client.namespace, "addr", "add", f"{client.address}/30", "dev", "uplink")
        _ip("-n", client.namespace, "link", "set", "uplink", "up")
        _ip("-n", client.namespace, "route", "add", "default", "via", gate)
