"""A notebook's session: its time, its GPU, its errors in one line, its results as one file."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from atlas_flwr.config.durations import seconds_in
from atlas_flwr.errors import AtlasError, ConfigError, ResultError

# Kept out of results.zip: they are large, and only needed to go on with a run.
LEFT_OUT = ("checkpoints", "vault", "models")


class Session:
    """How much of a notebook session is left, for ``stop_after``.

    Args:
        span: Time such as "3h30m" from now, after which the session may die.

    Raises:
        ConfigError: It is no span of time.
    """

    def __init__(self, span: str) -> None:
        try:
            self._until = time.monotonic() + seconds_in(span)
        except ValueError as error:
            raise ConfigError(f"session: {error}, got '{span}'") from error

    def left(self) -> str:
        """Return the time that is left, at least a second: a run always ends its round."""
        return f"{max(1, int(self._until - time.monotonic()))}s"


class GpuLog:
    """Asks ``nvidia-smi`` every second how busy the GPU is, beside the experiments.

    Without ``nvidia-smi`` nothing is started. Call `stop`, or use it as a context manager.
    """

    QUERY = "--query-gpu=name,utilization.gpu,memory.used,memory.total"

    def __init__(self, path: str | Path = "results/gpu.csv") -> None:
        self.path = Path(path)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> GpuLog:
        """Begin to write ``gpu.csv``, after what an earlier session wrote."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.stop()  # asked twice, it still runs once
        words = ["nvidia-smi", self.QUERY, "--format=csv,noheader,nounits", "--loop=1"]
        try:
            with self.path.open("ab") as file:
                self._process = subprocess.Popen(words, stdout=file, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            if not self.path.stat().st_size:  # else it is what an earlier session saw
                self.path.unlink()
        return self

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def summary(self) -> str:
        """Return what the GPU did, or that none was there."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        rows = [line.split(", ") for line in lines]
        rows = [row for row in rows if len(row) == 4 and row[1].isdigit() and row[2].isdigit()]
        if not rows:
            return "no GPU: the clients trained on the CPU"
        busy = [int(row[1]) for row in rows]
        return (
            f"{rows[-1][0]}: up to {max(busy)} % busy, {np.mean(busy):.0f} % on average over "
            f"{len(rows)} s; up to {max(int(row[2]) for row in rows):,} of {rows[-1][3]} MiB used"
        )

    def __enter__(self) -> GpuLog:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def plain_errors() -> None:
    """Show errors raised on purpose as one line in this notebook; others keep their trace."""
    if find_spec("IPython") is None:
        return
    from IPython.core.getipython import get_ipython  # noqa: PLC0415 - not needed outside notebooks

    shell = get_ipython()

    def one_line(_shell: Any, _kind: Any, error: BaseException, _trace: Any, **_: Any) -> None:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)

    if shell is not None:
        shell.set_custom_exc((AtlasError,), one_line)  # type: ignore[no-untyped-call]


def zip_results(out: str | Path = "results") -> Path:
    """Write ``<out>.zip`` beside the folder: all but checkpoints, vaults and full models.

    Raises:
        ResultError: There is no such folder.
    """
    out = Path(out).expanduser()
    if not out.is_dir():
        raise ResultError(f"{out}: no such folder; run an experiment first")
    out = out.resolve() if not out.name else out  # "." has no name of its own
    path = out.with_name(f"{out.name}.zip")
    made = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(out.rglob("*")):
            inside = file.relative_to(out)
            # In <out>/runs/<name>/<kind>/…
            kind = inside.parts[2] if len(inside.parts) > 3 and inside.parts[0] == "runs" else ""
            if file.is_file() and kind not in LEFT_OUT and not file.name.endswith(".lock"):
                archive.write(file, Path(out.name) / inside)
    made.replace(path)
    return path


def download(path: str | Path) -> None:
    """Hand a file to the browser in Colab; elsewhere say where it lies."""
    if "google.colab" in sys.modules:
        from google.colab import files  # noqa: PLC0415 - there only in Colab

        files.download(str(path))
    else:
        print(f"not in Colab: the file is {Path(path).resolve()}")
