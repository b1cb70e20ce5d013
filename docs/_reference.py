"""Reference tables made from the code, so that they cannot go stale."""

from __future__ import annotations

import ast
import html
import inspect
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import typer
from pydantic import BaseModel

from atlas_flwr.apps import cli
from atlas_flwr.apps.commands.shared import app
from atlas_flwr.config.schema import Config
from strategies.base import Method
from strategies.facts import FACTS
from strategies.registry import STRATEGIES

__all__ = ["TABLES", "cli"]  # importing the command line adds its commands


def configuration() -> str:
    """Return one table for each section of the experiment file."""
    schema = Config.model_json_schema(by_alias=True)
    parts = []
    for field, info in Config.model_fields.items():
        section = _section(info.annotation)
        key = str(info.alias or field)
        many = "tuple" in str(info.annotation)
        parts.append(f"## `[[{key}]]`\n" if many else f"## `[{key}]`\n")
        parts.append(_plain(inspect.getdoc(section) or "") + "\n")
        parts.append(_keys(section, schema["$defs"], key))
    return "\n".join(parts)


def options() -> str:
    """Return one table for each set of options, with the strategies that have it."""
    sets: dict[type[BaseModel], list[str]] = {}
    for name in FACTS:
        sets.setdefault(STRATEGIES[name].options_type, []).append(name)
    parts = []
    for model, names in sets.items():
        if not model.model_fields:
            continue
        schema = model.model_json_schema(by_alias=True)
        parts.append(f"## {', '.join(names)}\n")
        parts.append(_keys(model, schema.get("$defs", {}), "", schema))
    none = [f"`{n}`" for model, names in sets.items() if not model.model_fields for n in names]
    return "\n".join([*parts, "## Without options", "", ", ".join(none) + ".", ""])


def strategies() -> str:
    """Return the table of all strategies."""
    head = ("name", "what it does", "exact", "ranks", "models", "heads", "up", "down", "paper")
    rows = []
    for name, facts in FACTS.items():  # ours, whatever other packages bring
        method = STRATEGIES[name]
        paper = f"[{facts.paper}]({facts.url})" if facts.url else facts.paper or "–"
        shared = (facts.exact, ranks(method), facts.models, method.head or "any")
        rows.append((f"`{name}`", _cell(method.summary), *shared, facts.up, facts.down, paper))
    return table(head, rows)


def method_text(name: str) -> str:
    """Return a method's own docstring, its paper and its facts."""
    method, facts = STRATEGIES[name], FACTS[name]
    row = [f"exact: {facts.exact}", f"ranks: {ranks(method)}", f"models: {facts.models}"]
    row += [f"up: {facts.up}", f"down: {facts.down}"]
    if facts.url:
        row.append(f"[{facts.paper}]({facts.url})")
    return f"{_plain(inspect.getdoc(method) or '')}\n\n*{' · '.join(row)}*\n"


def commands() -> str:
    """Return every command with its arguments, options, defaults and example."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        text, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
        usage = " ".join(["atlas", name, *command.collect_usage_pieces(typer.Context(command))])
        parts.append(f"## atlas {name}\n\n{_brackets(text).strip()}\n")
        parts.append(f"```text\n{usage}\n```\n")
        rows = [_parameter(parameter) for parameter in command.params]
        if rows:
            parts.append(table(("argument or option", "value", "default", "meaning"), rows))
        if example:
            parts.append(f"Example:\n\n```text\n{_brackets(' '.join(example.split()))}\n```\n")
    return "\n".join(parts)


def ranks(method: type[Method]) -> str:
    """Return whether a method takes clients of several LoRA ranks."""
    return "mixed" if method.mixed_ranks else "one"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each field of a model, its bases' included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith(("atlas", "strat"))):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                told = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                found[field.target.id] = str(text.value.value) if told else ""
    return found


def keys_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield each key of a section and what it means, from the docstring below it."""
    told = meanings(model)
    for field, info in model.model_fields.items():
        key = f"{prefix}.{info.alias}" if prefix else str(info.alias)
        yield key, _plain(told.get(field, ""))


# ------------------------------------------------------------------ cells


def _keys(
    model: type[BaseModel], defs: dict[str, Any], prefix: str, schema: dict[str, Any] | None = None
) -> str:
    told = schema or defs[model.__name__]
    rows = []
    for key, meaning in keys_of(model, prefix):
        name = key.rpartition(".")[2]
        field = told["properties"][name]
        needed = name in told.get("required", [])
        default = "**needed**" if needed else _default(field.get("default", _factory(model, name)))
        rows.append((f"`{name}`", _type(field, defs), default, meaning))
    return table(("key", "value", "default", "meaning"), rows)


def _factory(model: type[BaseModel], alias: str) -> Any:
    (field,) = (info for info in model.model_fields.values() if info.alias == alias)
    return field.default_factory() if field.default_factory else None  # type: ignore[call-arg]


def _type(field: dict[str, Any], defs: dict[str, Any]) -> str:
    """Return a JSON schema as words: its kind, its choices, its range."""
    if ref := field.get("$ref"):
        return _type(defs[ref.rpartition("/")[2]], defs)
    if choices := field.get("anyOf"):
        return " or ".join(_type(c, defs) for c in choices if c.get("type") != "null")
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return ", ".join(f"`{value}`" for value in values)
    words = {
        "array": lambda: f"list of {_type(field['items'], defs)}",
        "boolean": lambda: "`true`, `false`",
        "integer": lambda: f"whole number{_range(field)}",
        "number": lambda: f"number{_range(field)}",
        "object": lambda: f"table{_values(field, defs)}",
        # One pattern is in use, that of names; a regular expression helps few readers.
        "string": lambda: "letters, digits, `.`, `_`, `-`" if "pattern" in field else "text",
    }
    return words[field["type"]]()


def _values(field: dict[str, Any], defs: dict[str, Any]) -> str:
    values = field.get("additionalProperties", True)
    return "" if values is True else f" of {_type(values, defs)}"


def _range(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:.10g}" for key, sign in signs.items() if key in field]
    return f" {' and '.join(bounds)}" if bounds else ""


def _default(value: Any) -> str:
    match value:
        case None:
            return "absent"
        case bool():
            return f"`{str(value).lower()}`"
        case [single]:
            return f"`{single}`"
        case [] | {}:
            return "empty"
        case _:
            return f"`{value}`"


def _parameter(parameter: Any) -> tuple[str, str, str, str]:
    is_option = parameter.param_type_name == "option"
    name = ", ".join(parameter.opts) if is_option else parameter.name.upper()
    if parameter.secondary_opts:
        name += f", {', '.join(parameter.secondary_opts)}"
    kind = "flag" if getattr(parameter, "is_flag", False) else _kind(parameter.type)
    if parameter.metavar and is_option:
        kind = f"`{parameter.metavar}`"
    many = " (may be repeated)" if parameter.multiple else ""
    default = parameter.default
    if getattr(parameter, "is_flag", False):
        default = (parameter.opts if default else parameter.secondary_opts or [None])[0]
    shown = "**needed**" if parameter.required else "" if default is None else f"`{default}`"
    text = html.escape(_brackets(parameter.help or ""), quote=False)
    return f"`{name}`", f"{kind}{many}", shown, text


def _kind(kind: Any) -> str:
    if choices := getattr(kind, "choices", None):
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = [("≥", getattr(kind, "min", None)), ("≤", getattr(kind, "max", None))]
    told = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    words = {"integer": "whole number", "integer range": "whole number"}
    return f"{words.get(kind.name, kind.name)} {told}".strip()


def _section(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if part not in (type(None), Ellipsis):
            return _section(part)
    raise TypeError(f"{annotation} holds no section")


def _plain(text: str) -> str:
    """Return a docstring as Markdown: double backticks are single ones, lines are joined."""
    return text.replace("``", "`").replace("  \n", "\n")


def _brackets(text: str) -> str:
    return text.replace("\\[", "[")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": configuration,
    "options": options,
    "strategies": strategies,
}
