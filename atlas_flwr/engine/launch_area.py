"""The private working area of one Ray run: folders, environment, Flower config and app folder.

`flwr run` would start one permanent daemon per user whose folder and environment every later run
inherits, and simulated clients import from that folder first. Each run here gets its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

import atlas_flwr
from atlas_flwr.engine.orphan import PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECTION = "atlas"
APP_NAME = "atlas-run"
LOOPBACK = "127.0.0.1"
# Ray appends "/ray/session_<date>_<time>_<pid>/sockets/plasma_store" (68 characters) and a Unix
# socket's path holds at most 103 (macOS) or 107 (Linux) bytes.
RAY_ROOM = 103 - 68
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Set by the user's shell for another Flower or Ray; each would point this run at somebody else's.
_FOREIGN = ("FLWR_", "RAY_ADDRESS", "RAY_NAMESPACE", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
# Set inside notebooks: Flower's JSON would be printed in colours, which no reader of JSON takes.
_COLOURS = ("FORCE_COLOR", "CLICOLOR", "TTY_")
SUPERLINK = "flower-superlink"


@dataclass(frozen=True)
class AppRefs:
    """The two apps of a run, as `module:attribute`, and where they are imported from.

    Attributes:
        server: The ServerApp.
        client: The ClientApp.
        folder: A folder to import them from when they are not installed; None for installed ones.
    """

    server: str = "atlas_flwr.apps.server:app"
    client: str = "atlas_flwr.apps.client:app"
    folder: Path | None = None


@dataclass(frozen=True)
class Area:
    """The folders of one run, all below `root`, which nobody else can read.

    Attributes:
        root: The private folder, also Ray's temporary one.
        home: Flower's home (config, installed bundles).
        cwd: The daemon's current folder, kept empty.
        app: The app folder given to `flwr run`.
        log: What the daemon printed.
    """

    root: Path
    home: Path
    cwd: Path
    app: Path
    log: Path


@contextmanager
def private_area() -> Iterator[Area]:
    """Make a run's private folders and remove them at the end, whatever happened."""
    # By then every process of the run is gone, so what cannot be removed is not ours to mend.
    with tempfile.TemporaryDirectory(
        prefix="atlas-", dir=_short_temp_folder(), ignore_cleanup_errors=True
    ) as name:
        root = Path(name)
        area = Area(root, root / "home", root / "cwd", root / "app", root / "superlink.log")
        for folder in (area.home, area.cwd, area.app):
            folder.mkdir()
        yield area


def _short_temp_folder() -> str:
    """Return the temporary folder, or /tmp where that one is too deep for Ray's sockets."""
    usual = tempfile.gettempdir()
    if len(usual) + len("/atlas-12345678") <= RAY_ROOM or not os.access("/tmp", os.W_OK):
        return usual
    return "/tmp"


def environment_for(
    area: Area, threads: int, apps: AppRefs, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of every process of a run.

    Everything the caller has set passes through (HF_HUB_OFFLINE, CUDA_VISIBLE_DEVICES, proxies),
    except what would make this run use another Flower home, Ray cluster or checkout.

    Args:
        area: The run's folders.
        threads: Threads of one client's maths; at least 1.
        apps: The apps; their folder is made importable.
        base: The caller's environment.
    """
    kept = {key: value for key, value in base.items() if not key.startswith(_FOREIGN + _COLOURS)}
    quiet = {
        "FLWR_HOME": str(area.home),
        PARENT: str(os.getpid()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(area.root),
        # Prestarted workers lack the environment that Flower asks for, so none is ever used.
        "RAY_enable_worker_prestart": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    kept |= quiet | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    # Flower's daemon starts its other programs by name, so this environment's come first.
    kept["PATH"] = os.pathsep.join([str(program_folder()), base.get("PATH", os.defpath)])
    if folders := _import_folders(apps):
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return kept | _unproxied(base)


def _import_folders(apps: AppRefs) -> list[str]:
    """Return the folders that make both apps and this very `atlas_flwr` importable.

    An installed package needs none: naming site-packages would put it before the standard library.
    """
    here = Path(atlas_flwr.__file__).resolve().parent.parent
    installed = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}
    folders = [] if here in installed else [str(here)]
    return folders if apps.folder is None else [str(apps.folder.resolve()), *folders]


def _unproxied(base: Mapping[str, str]) -> dict[str, str]:
    """Return no-proxy settings that add this machine: Flower's client would ask the proxy for it.

    Both spellings get one value, since programs read either.
    """
    now = base.get("no_proxy") or base.get("NO_PROXY") or ""
    value = ",".join([*filter(None, [now]), LOOPBACK, "localhost"])
    return {"no_proxy": value, "NO_PROXY": value}


def program_folder() -> Path:
    """Return the folder of this Python's programs (`flwr`, `flower-superlink`).

    Beside the interpreter in a virtual environment; elsewhere (Colab, Debian, a user install)
    where that interpreter's installer puts scripts, or wherever the shell would find them.
    """
    user = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    found = shutil.which(SUPERLINK)
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts")), Path(user)]
    folders += [Path(found).parent] if found else []
    return next((folder for folder in folders if (folder / SUPERLINK).exists()), folders[0])


def write_connection(area: Area, port: int, authority: Path | None = None) -> None:
    """Write the Flower config that names this run's SuperLink, and nothing else.

    Args:
        area: The run's folders.
        port: The SuperLink's port.
        authority: Certificate of the authority it is checked against; plain HTTP without one.
    """
    safe: dict[str, str | bool] = {"insecure": True}
    if authority is not None:
        safe = {"root-certificates": str(authority)}
    link = {"address": f"{LOOPBACK}:{port}", **safe}
    config = {"superlink": {"default": CONNECTION, CONNECTION: link}}
    (area.home / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")


def write_app(area: Area, apps: AppRefs, config_file: Path, out: Path, resume: str = "") -> None:
    """Write the app folder: one file, which names the apps and holds the run's settings.

    The code itself is imported from the environment, so there is one copy of it and no 10 MB
    limit. The settings are the app's defaults instead of `--run-config` words, whose parser
    cannot hold every path.
    """
    app = {
        "publisher": "atlas",
        "components": {"serverapp": apps.server, "clientapp": apps.client},
        "config": {"config": str(config_file), "out": str(out), "overrides": "", "resume": resume},
    }
    project = {"name": APP_NAME, "version": "0.0.0"}
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})
    (area.app / "pyproject.toml").write_text(text, encoding="utf-8")


def federation_words(supernodes: int, workers: int, threads: int, gpus_per_client: float) -> str:
    """Return the words for `flwr run --federation-config`.

    Flower keeps min(CPUs // CPUs a client, GPUs // GPUs a client) workers, so `workers * threads`
    CPUs at `threads` a client give `workers`, or fewer where the GPUs run out first. With 0 GPUs a
    client, Ray hides CUDA from the clients.
    """
    words = {
        "num-supernodes": supernodes,
        "client-resources-num-cpus": threads,
        "client-resources-num-gpus": float(gpus_per_client),
        "init-args-num-cpus": workers * threads,
    }
    return " ".join(f"{key}={value}" for key, value in words.items())


def free_port() -> int:
    """Return a TCP port that was free on this machine a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
