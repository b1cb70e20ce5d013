"""Run an experiment on Flower's deployment engine on this machine: one SuperLink, N SuperNodes.

The processes are those of a real deployment, on loopback: each SuperNode has a home, a port and,
with TLS, a registered key of its own, and starts one process for each message. They are ours for
one run and all end with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tomli_w

from atlas_flwr.engine.deploy_keys import Certificates, write_certificates, write_node_key
from atlas_flwr.engine.launch_area import (
    CONNECTION,
    LOOPBACK,
    AppRefs,
    Area,
    environment_for,
    free_port,
    private_area,
    write_app,
    write_connection,
)
from atlas_flwr.engine.launch_daemon import ProcessTree, program_path, start_superlink
from atlas_flwr.engine.launch_session import EngineOutcome, Session
from atlas_flwr.engine.launch_signals import signals_raise, signals_wait
from atlas_flwr.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER_APP = "flwr-serverapp"
SUPERNODE = "flower-supernode"


@dataclass
class Deployment:
    """A SuperLink and its SuperNodes on this machine, and the run they serve.

    Attributes:
        session: The SuperLink and Flower's commands.
        port: The SuperLink's port.
        certificates: What TLS is checked with; None for plain HTTP.
        nodes: The process of each SuperNode by partition, the newest.
    """

    session: Session
    port: int = 0
    certificates: Certificates | None = None
    nodes: dict[int, ProcessTree] = field(default_factory=dict)

    @property
    def area(self) -> Area:
        """The run's folders."""
        return self.session.area

    def start_link(self, tls: bool) -> None:
        """Start the SuperLink, and point Flower's commands at it.

        Args:
            tls: Whether it speaks TLS and serves registered SuperNodes alone.

        Raises:
            RunFailed: It did not come up.
        """
        if tls:
            keys = self.area.root / "keys"
            self.certificates = write_certificates(keys, [LOOPBACK, "localhost"])
        authority = self.certificates.authority if self.certificates else None
        session = self.session
        self.port = start_superlink(
            self.area,
            session.env,
            session.trees.append,
            session.tick,
            self._link_words(),
            authority,
        )
        write_connection(self.area, self.port, authority)

    def _link_words(self) -> list[str]:
        words = ["--isolation", "subprocess", "--disable-runtime-dependency-installation"]
        words += ["--database", str(self.area.root / "superlink.db")]
        if self.certificates is None:
            return ["--insecure", *words]
        files = self.certificates
        words += ["--ssl-ca-certfile", str(files.authority), "--ssl-certfile"]
        words += [str(files.certificate), "--ssl-keyfile", str(files.key)]
        return [*words, "--enable-supernode-auth"]

    def register(self, partition: int) -> Path:
        """Make a SuperNode's key and register it with the SuperLink; return the private key.

        Raises:
            RunFailed: Flower refused the key.
        """
        private = self.area.root / "keys" / f"node-{partition}"
        public = write_node_key(private)
        code, printed = self.session.flwr("supernode", "register", str(public), CONNECTION)
        if code != 0:
            raise RunFailed(f"Flower refused a SuperNode's key: {' '.join(printed.split())}")
        return private

    def start_node(
        self,
        partition: int,
        config: Mapping[str, str | int],
        key: Path | None = None,
        authority: Path | None = None,
    ) -> ProcessTree:
        """Start a SuperNode; a partition's earlier process must have ended.

        Args:
            partition: Which client it is.
            config: What it is told at home beside its partition: ``data-path``, ``vault-path``.
            key: Its private key, where the SuperLink asks for one.
            authority: Certificate to check the SuperLink against; the right one unless given.
        """
        home = self.area.root / f"node-{partition}"
        home.mkdir(exist_ok=True)
        # A file: Flower's parser of words can't hold every path.
        told = home / "config.toml"
        told.write_text(tomli_w.dumps({"partition-id": partition, **config}), encoding="utf-8")
        command = [program_path(SUPERNODE), "--superlink", f"{LOOPBACK}:{self.port}"]
        command += ["--port", str(free_port()), "--node-config", str(told)]
        if self.certificates is None:
            command.append("--insecure")
        else:
            command += ["--root-certificates", str(authority or self.certificates.authority)]
        if key is not None:
            command += ["--auth-supernode-private-key", str(key)]
        env = {**self.session.env, "FLWR_HOME": str(home)}
        tree = ProcessTree.start(command, self.area, env, self.log_of(partition))
        self.nodes[partition] = tree
        self.session.others.append(tree)
        return tree

    def log_of(self, partition: int) -> Path:
        """Return the file in which a SuperNode prints."""
        return self.area.root / f"node-{partition}.log"


@contextmanager
def deployment(
    threads: int, apps: AppRefs | None = None, tick: Callable[[], None] | None = None
) -> Iterator[Deployment]:
    """Give folders for a deployment on this machine; end all its processes, whatever happens.

    Args:
        threads: CPU threads of each client.
        apps: The apps that run; atlas-flwr's own unless given.
        tick: Called a few times a second while something is waited for.

    Raises:
        RunFailed: A process could not be stopped.
    """
    with private_area() as area, signals_raise():
        env = environment_for(area, threads, apps or AppRefs(), os.environ)
        session = Session(area, env, tick or (lambda: None))
        try:
            yield Deployment(session)
        finally:
            with signals_wait():
                left = session.stop()
    if left:
        raise RunFailed(f"processes of the run could not be stopped: {left}")


def run_deployed(  # noqa: PLR0913 - as many as a run on Ray has
    config_file: Path,
    out: Path,
    nodes: Sequence[Mapping[str, str | int]],
    threads: int,
    *,
    tls: bool = False,
    on_tick: Callable[[], None] | None = None,
    timeout: float | None = None,
    apps: AppRefs | None = None,
    resume: str = "",
) -> EngineOutcome:
    """Run one experiment over real processes on this machine and wait for its end.

    Args:
        config_file: The resolved experiment file.
        out: The run directory, which the ServerApp writes; `engine.log` is put there on failure.
        nodes: What each SuperNode is told at home, by partition.
        threads: CPU threads of each client.
        tls: TLS under a new authority, and SuperNodes that must be registered.
        on_tick: Called a few times a second by the calling thread.
        timeout: Seconds after which the run is stopped and called failed; None for no limit.
        apps: The apps to run; atlas-flwr's own unless given.
        resume: From where the run goes on, as the ServerApp is told.

    Raises:
        RunFailed: Flower could not be started, refused the run or a key, died, or left a process.
    """
    refs = apps or AppRefs()
    with deployment(threads, refs, on_tick) as deployed:
        session = deployed.session
        try:
            write_app(deployed.area, refs, config_file.resolve(), out.resolve(), resume)
            deployed.start_link(tls)
            for partition, told in enumerate(nodes):
                key = deployed.register(partition) if tls else None
                deployed.start_node(partition, told, key)
            session.submit()
            return session.watch(out, SERVER_APP, timeout)
        except RunFailed as error:
            session.fail(out, str(error))
