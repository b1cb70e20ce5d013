"""From TOML and dotted overrides to a checked ``Config``; a refusal is one line with its path."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from atlas_flwr.config.checks import check_sections
from atlas_flwr.config.devices import DEVICES
from atlas_flwr.config.schema import Config
from atlas_flwr.config.sections import DeviceSection
from atlas_flwr.errors import ConfigError, did_you_mean


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment file, apply ``a.b=value`` overrides, and check the whole.

    Relative paths inside the file (``data.root``, ``task.path``, a model folder that starts with
    a dot) are taken from the file's own folder.

    Args:
        path: The TOML file.
        overrides: ``section.key=value`` items; the value is TOML, or a bare word.

    Raises:
        ConfigError: The file can't be read, or a key or value is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({_reason(error)})") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    if isinstance(tree.get("run"), list):
        raise ConfigError(f"{path}: is a suite, not an experiment: atlas suite {path}")
    return build_config(tree, path.resolve().parent, overrides)


def build_config(tree: dict[str, Any], folder: Path, overrides: Sequence[str] = ()) -> Config:
    """Lay ``a.b=value`` overrides over plain values, and check the whole.

    Args:
        tree: Sections of plain values, as in TOML; it is changed.
        folder: Where relative paths in the values start.
        overrides: ``section.key=value`` items.

    Raises:
        ConfigError: A key or value is wrong.
    """
    for item in overrides:
        _apply(tree, item)
    return parse_config(_anchored(tree, folder))


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Check a tree of plain values and return the frozen config.

    Raises:
        ConfigError: Names the dotted path, the value and what must hold.
    """
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    check_sections(config)
    return _spelled(config)


def dump_config(config: Config) -> str:
    """Return the resolved config as TOML with every key; keys without a value are left out."""
    tree = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    tree["train"]["learning-rate"] = config.learning_rate
    ranks = tree["lora"].get("rank", ())  # devices have ranks of their own
    if len(ranks) == 1:
        tree["lora"]["rank"] = ranks[0]
    for empty in ("task", "device"):
        if not tree[empty]:
            del tree[empty]
    return tomli_w.dumps(tree)


def with_out(config: Config, out: str | None) -> Config:
    """Return the config with its run directory resolved and absolute.

    Args:
        config: The experiment.
        out: What the command line named; else ``run.out``; else ``runs/<name>-<UTC time>`` under
            the current folder.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    chosen = out or config.run.out or f"runs/{config.run.name}-{stamp}"
    path = str(_expanded(chosen, "run.out").resolve())
    return config.model_copy(update={"run": config.run.model_copy(update={"out": path})})


# ------------------------------------------------------------------ overrides and paths


def _apply(tree: dict[str, Any], item: str) -> None:
    """Set one ``a.b=value`` in the tree."""
    key, equals, value = item.partition("=")
    path = _steps(key)
    if not equals or not path or not all(path):
        raise ConfigError(f"override '{item}': expected section.key=value, e.g. run.rounds=3")
    node: Any = tree
    for step in path[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override '{item}': '{step}' is a value, not a section")
    node[path[-1]] = parse_value(value.strip())


def _steps(key: str) -> list[str]:
    """Split a dotted key; a step in quotes keeps its dots, as in TOML."""
    if not {'"', "'"} & set(key):
        return key.strip().split(".")
    if "\n" in key:
        return []
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return []
    path = []
    while isinstance(node, dict):
        ((step, node),) = node.items()
        path.append(step)
    return path


def parse_value(text: str) -> Any:
    """Read a TOML value; what is not TOML is a bare word.

    >>> parse_value("[2, 4]"), parse_value("0.5"), parse_value("fedavg")
    ([2, 4], 0.5, 'fedavg')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative paths absolute: the file's folder is their start."""

    def absolute(value: Any, key: str) -> Any:
        if not isinstance(value, str):
            return value
        path = _expanded(value, key)
        return str(path if path.is_absolute() else folder / path)

    data, model, tasks = tree.get("data"), tree.get("model"), tree.get("task")
    if isinstance(data, dict) and "root" in data:
        data["root"] = absolute(data["root"], "data.root")
    if isinstance(model, dict) and _is_folder(model.get("name"), folder):
        model["name"] = absolute(model["name"], "model.name")
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and "path" in task:
            task["path"] = absolute(task["path"], "task.path")
    return tree


def _is_folder(name: Any, folder: Path) -> bool:
    """Tell a model's folder, by its looks or beside the file, from a name or a hub id."""
    if not isinstance(name, str):
        return False
    return name.startswith((".", "~", "/")) or (folder / name / "config.json").is_file()


def _expanded(value: str, key: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: '{value}': {error}") from error


# ------------------------------------------------------------------ spelled out


def _spelled(config: Config) -> Config:
    """Return the config with the devices it uses defined: a built-in one may change one day."""
    if config.devices is None:
        return config
    defined = {device.name for device in config.device}
    new = tuple(
        DeviceSection(
            name=name,
            rank=DEVICES[name].rank,
            memory_gb=DEVICES[name].memory_gb,
            state_mb=DEVICES[name].state_mb,
            uplink_mb=DEVICES[name].uplink_mb,
        )
        for name in dict.fromkeys(config.devices.profiles)
        if name not in defined
    )
    return config.model_copy(update={"device": config.device + new})


# ------------------------------------------------------------------ one line for a refusal


def _one_line(error: ValidationError) -> str:
    """Return the first refusal as ``dotted.path: what must hold, got value``."""
    # An unknown key first: `rounds = 3` above all sections is why `data` seems to be missing.
    found = error.errors(include_url=False)
    first = min(found, key=lambda refusal: refusal["type"] != "extra_forbidden")
    path, kind = _dotted(first["loc"]), first["type"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_near_key(first['loc'])}"
    if kind == "missing":
        return f"{path}: is required{_EXAMPLES.get(path, '')}"
    if kind == "string_pattern_mismatch":  # names only; nobody should have to read a pattern
        must = "should be letters, digits, '.', '_' or '-', at most 64, and begin with none of .-_"
        return f"{path}: {must}, got {first['input']!r}"
    return in_words(path, first)


def in_words(path: str, refusal: Mapping[str, Any]) -> str:
    """Return a refusal of pydantic's as ``path: what must hold, got value``."""
    kind, value = refusal["type"], refusal["input"]
    if kind in ("tuple_type", "list_type"):
        return f"{path}: {_as_list(path, value)}, got {value!r}"
    if kind == "too_short":
        least = refusal["ctx"]["min_length"]
        entries = "entry" if least == 1 else "entries"
        return f"{path}: should have at least {least} {entries}, got {value!r}"
    message = refusal["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {value!r}"


def _as_list(path: str, value: Any) -> str:
    """Return how a list is written, with the user's own value in it."""
    if isinstance(value, Mapping):
        return f"is a list of tables: write [[{path}]], with two brackets"
    return f"should be a list, e.g. {json.dumps([value], default=str, ensure_ascii=False)}"


_EXAMPLES = dict.fromkeys(("data", "data.tasks"), ', e.g. [data] tasks = ["bbc", "tweets"]')


def _near_key(loc: tuple[int | str, ...]) -> str:
    """Return what an unknown key may have been: here, or in a section when it has none."""
    known, word = _keys_at(loc[:-1]), str(loc[-1])
    if len(loc) == 1:
        homes = [f"{section}.{word}" for section in known if word in _keys_at((section,))]
        if homes:
            return f" (did you mean {' or '.join(repr(home) for home in homes)}?)"
    return did_you_mean(word, known) or "; known: " + ", ".join(known)


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Return a place as the user writes it; below ``rank-pattern`` names are the model's."""
    steps: list[str] = []
    for step in loc:
        if not _is_branch(step):
            own = "rank-pattern" in steps
            steps.append(str(step) if own else str(step).replace("_", "-"))
    return ".".join(steps)


def _is_branch(step: int | str) -> bool:
    """Tell pydantic's names of union branches (``literal['auto']``) from keys."""
    return isinstance(step, str) and any(mark in step for mark in "[](),")


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys a section knows, for did-you-mean."""
    model: type[BaseModel] = Config
    for step in loc:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step.replace("-", "_"))
        annotation = field.annotation if field else None
        inner = typing.get_args(annotation)[:1] or (annotation,)
        if isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
            model = inner[0]
    return [name.replace("_", "-") for name in model.model_fields]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
