"""A second folder that holds a run's commits and what they count on, such as a mounted drive.

A mirror is a run directory of its own: ``atlas resume`` goes on from it. Files are copied before
the commit that counts on them is renamed into place; where a drive broke that order (torn
uploads), the digests tell, and the commit before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from atlas_flwr.engine.checkpoint import FOLDER, MANIFEST, commits, prune, read_manifest
from atlas_flwr.engine.files import (
    digest_of,
    move_into_place,
    passed,
    remove,
    sync_folder,
)
from atlas_flwr.errors import ResultError
from atlas_flwr.results.writing import atomic_write, write_synced

MARK = ".mirror"
SUMMARY = "summary.json"
VAULT = "vault"


class Mirror:
    """Copies one run's commits to ``folder``.

    Attributes:
        folder: The run's own folder there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._there: dict[str, str] = {}

    def begin(self, out: Path) -> None:
        """Make the folder and copy what names the run, which has not ended.

        Args:
            out: The run directory.

        Raises:
            ResultError: The folder can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / SUMMARY).unlink(missing_ok=True)
            write_synced(self.folder / MARK, f"{out}\n".encode())
            for name in ("provenance.json", "config.toml"):
                self._copy(out / name, name)
        except OSError as error:
            raise ResultError(
                f"run.mirror: {self.folder}: can't be written ({error.strerror or error})"
            ) from error

    def add(self, out: Path, commit: Path, vault: Mapping[str, str]) -> None:
        """Copy a commit, after the vault files it counts on.

        Raises:
            ResultError: Somebody goes on with the run in the mirror itself.
        """
        if not (self.folder / MARK).exists():
            raise ResultError(
                f"run.mirror: the run goes on in {self.folder} itself, since somebody resumed it "
                "there; two of it write over each other"
            )
        for name, told in vault.items():
            if self._there.get(name) != told:
                self._copy(out / VAULT / name, f"{VAULT}/{name}")
                self._there[name] = told
        folder = self.folder / FOLDER
        folder.mkdir(exist_ok=True)
        made = folder / f".{commit.name}.tmp"
        remove(made)
        made.mkdir()
        for path in sorted(commit.iterdir()):
            write_synced(made / path.name, path.read_bytes())
        passed("mirror-filled")
        move_into_place(made, folder / commit.name)
        prune(folder, int(commit.name.removeprefix("round-")))
        self._forget()
        passed("mirrored")

    def finish(self, out: Path, names: Iterable[str]) -> None:
        """Copy results of a run that has ended, folders as a whole, and the summary last."""
        for name in (*names, SUMMARY):
            inside = sorted((out / name).rglob("*")) if (out / name).is_dir() else [out / name]
            for path in inside:
                if path.is_file():
                    self._copy(path, path.relative_to(out).as_posix())

    def _copy(self, source: Path, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, source.read_bytes())
        sync_folder(path.parent)

    def _forget(self) -> None:
        """Remove vault files that no commit here counts on."""
        counted: set[str] = set()
        try:
            for number in commits(self.folder):
                manifest = self.folder / FOLDER / f"round-{number}" / MANIFEST
                counted |= read_manifest(manifest)["vault"].keys()
        except ResultError:
            return  # an older copy is torn: nothing is removed before that one has gone
        for path in (self.folder / VAULT).rglob("*.safetensors"):
            name = path.relative_to(self.folder / VAULT).as_posix()
            if name not in counted:
                path.unlink()
                self._there.pop(name, None)


def check_vault(out: Path, vault: Mapping[str, str]) -> None:
    """Check that every vault file a commit counts on is there, and is what it was.

    Raises:
        ResultError: Names the first that is not.
    """
    for name, told in vault.items():
        path = out / VAULT / name
        if not path.is_file():
            raise ResultError(f"{path}: is missing; a client's own parts are lost with it")
        if digest_of(path) != told:
            raise ResultError(f"{path}: is damaged (its digest differs)")


class VaultDigests:
    """Digests of vault files, each computed once for as long as the file stays as it is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[int, int, str]] = {}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Return the digest of each file that is there."""
        found: dict[str, tuple[int, int, str]] = {}
        for name in names:
            path = self._root / name
            if not path.is_file():
                continue  # a deployed client's vault is on its own disk
            seen = path.stat()
            size, changed, told = self._known.get(name, (-1, -1, ""))
            if (size, changed) != (seen.st_size, seen.st_mtime_ns):
                told = digest_of(path)
            found[name] = (seen.st_size, seen.st_mtime_ns, told)
        self._known = found
        return {name: told for name, (_, _, told) in found.items()}
