"""`atlas up`: the whole deployment of one experiment on this machine, for as long as it runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from atlas_flwr.apps.going import begin, go_on
from atlas_flwr.apps.home import DATA_PATH, VAULT_PATH, Home
from atlas_flwr.apps.record import EVENTS
from atlas_flwr.apps.run import Launcher
from atlas_flwr.apps.shards import client_folder, write_shards
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.deploy import run_deployed
from atlas_flwr.engine.files import remove
from atlas_flwr.engine.launch import EngineOutcome
from atlas_flwr.errors import ResultError

NODES = "nodes"
"""Folder in the run directory that stands for the SuperNodes' own disks."""


def bring_up(console: Console, config: Config, data: Path | None, tls: bool, resume: bool) -> None:
    """Run an experiment over one SuperLink and a SuperNode for each client; print its results.

    Args:
        console: Where to print.
        config: The experiment; ``run.out`` is set.
        data: Folder with a ``client-<i>`` for each client, as `atlas shards` writes it. Without
            one, shards are written below the run directory first.
        tls: TLS under a new authority, and SuperNodes with registered keys.
        resume: Go on with the run in the run directory, if there is one.

    Raises:
        UserError: The input is wrong; nothing was started.
        RunFailed: The run stopped before its end.
    """
    out = Path(str(config.run.out))
    shards = data.resolve() if data is not None else None
    if shards is not None:
        for partition in range(config.run.clients):
            folder = client_folder(shards, partition)
            Home(partition, folder).holding()  # a folder that is missing or wrong is told at once
    launch: Launcher = partial(_deploy, shards, tls)
    if resume and (out / "config.toml").exists():
        go_on(console, out, same_as=config, deployed=launch)
        return
    # What a run that was killed before it began left there is written anew.
    if (out / NODES).exists() and not (resume and (out / EVENTS).exists()):
        raise ResultError(f"{out / NODES}: is there already; name another --out")
    begin(console, config, launch)


def _deploy(
    shards: Path | None, tls: bool, config: Config, resolved: Path, resume: str
) -> EngineOutcome:
    """Write the shards if nobody did, and run over real processes."""
    out = Path(str(config.run.out))
    home = out / NODES
    if shards is None:
        shards = home
        if not resume or not home.exists():
            _write_whole(config, home)
    nodes: list[Mapping[str, str | int]] = [
        {
            DATA_PATH: str(client_folder(shards, partition)),
            VAULT_PATH: str(client_folder(home, partition) / "vault"),
        }
        for partition in range(config.run.clients)
    ]
    return run_deployed(resolved, out, nodes, config.engine.threads, tls=tls, resume=resume)


def _write_whole(config: Config, home: Path) -> None:
    """Write all shards or none: a run that was killed meanwhile must not go on with some."""
    part = home.with_name(f".{home.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_shards(config, part)
        remove(home)
        os.replace(part, home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
