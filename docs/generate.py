"""The parts of the pages that are made from the code, and so cannot differ from it."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import click

from tif1_pipeline.cache.frames import from_table
from tif1_pipeline.cli import cli
from tif1_pipeline.config import Config, setting_help
from tif1_pipeline.datasets import DATASETS, Dataset
from tif1_pipeline.exceptions import ConfigError

GROUPS = {
    "memory_cache_enabled": "Memory tier",
    "cache_enabled": "Cache file",
    "cache_page_size": "SQLite",
    "cache_ttl": "Age and freshness",
    "cache_auto_cleanup": "Cleanup",
    "cache_readonly": "Operation",
    "cache_enable_metrics": "Observation",
    "cache_encryption_key": "Encryption",
    "cdn_urls": "Network",
    "operations_timezone": "Operations in Dagster",
}
"""Headings of the table of settings, each before the setting it is named by."""
_WIDTH = 88
_CHOICES = re.compile(
    r": choose (?:a value )?(from [\d,]+ to .*|one of .*|a power of two .*)"
)


def write(folder: Path) -> None:
    """Write all generated parts as Markdown into a folder, for the pages to include."""
    folder.mkdir(exist_ok=True)
    for name, text in {
        "settings": settings(),
        "commands": commands(),
        "tables": tables(),
    }.items():
        path = folder / f"{name}.md"
        if (
            not path.exists() or path.read_text(encoding="utf-8") != text
        ):  # else Sphinx would read it anew
            path.write_text(text, encoding="utf-8")


# ---- settings


def settings() -> str:
    """Return a table for each group of settings."""
    helps = setting_help()
    lines = []
    for field in attrs.fields(Config):
        if heading := GROUPS.get(field.name):
            lines += [
                "",
                f"### {heading}",
                "",
                "| setting | default | meaning |",
                "|---|---|---|",
            ]
        meaning = _cell(
            "; ".join(part for part in (helps[field.name], _limits(field.name)) if part)
        )
        lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if isinstance(field.default, attrs.Factory):
        text = field.default.factory.__doc__.strip().rstrip(".")
        return _cell(text[0].lower() + text[1:])
    value = getattr(Config(), field.name)
    if isinstance(value, tuple) and value:
        return "<br>".join(f"`{item}`" for item in value)
    if isinstance(value, timedelta):
        return f"`{_duration(value)}`"
    if isinstance(value, Path):
        return f"`{field.default}`"
    return f"`{value}`"


def _duration(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _limits(name: str) -> str:
    """Return which values a setting takes, in the words of the error for a bad one."""
    for bad in (-1, "?"):
        try:
            setattr(Config(), name, bad)
        except ConfigError as error:
            if found := _CHOICES.search(str(error)):
                return found[1]
    return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- commands


def commands() -> str:
    """Return tables of the commands, and for each a section with its ``--help``."""
    lines = []
    for title, verbs in cli.sections.items():
        lines += ["", f"| {title} | |", "|---|---|"]
        lines += [
            f"| [`{name}`](#{_anchor(name)}) | {_cell(verb.summary)} |"
            for name, verb in verbs.items()
        ]
    group = click.Context(cli, info_name="tif1-pipeline", **cli.context_settings)
    for name in cli.list_commands(group):
        lines += ["", f"({_anchor(name)})=", "", f"### `tif1-pipeline {name}`", ""]
        lines += ["```text", _help(group, name), "```"]
    return "\n".join(lines) + "\n"


def _anchor(name: str) -> str:
    return f"command-{name}"


def _help(group: click.Context, name: str) -> str:
    command = cli.get_command(group, name)
    if command is None:
        raise LookupError(f"the command {name} is listed, but there is none")
    context = click.Context(
        command, group, name, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    return click.unstyle(command.get_help(context)).rstrip()


# ---- tables


def tables() -> str:
    """Return a section for each table, with its columns, types and units."""
    return "\n".join(_table(dataset) for dataset in DATASETS.values())


def _table(dataset: Dataset) -> str:
    types = from_table(dataset.schema.empty_table(), "pandas").dtypes
    facts = [f"one table a {dataset.level}", f"schema version {dataset.schema_version}"]
    if dataset.file:
        facts.append(f"from `{dataset.file}`")
    if dataset.part_by:
        facts.append(f"stored in one part for each value of `{dataset.part_by}`")
    lines = [
        f"## {dataset.name}",
        "",
        dataset.description,
        "",
        f"{facts[0][0].upper()}{'; '.join(facts)[1:]}.",
        "",
    ]
    has_sources = any(column.source for column in dataset.columns)
    lines += [
        "| column | pandas type | unit | meaning |"
        + (" in the JSON |" if has_sources else "")
    ]
    lines += ["|---|---|---|---|" + ("---|" if has_sources else "")]
    for column in dataset.columns:
        name = f"`{column.name}`" + (r" \*" if column.required else "")
        cells = [
            name,
            str(types[column.name]),
            column.unit or "",
            _cell(column.description),
        ]
        if has_sources:
            cells.append(f"`{column.source}`" if column.source else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
