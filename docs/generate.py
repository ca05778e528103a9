"""The parts of the pages that are made from the code, and so cannot differ from it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from tif1_pipeline import analysis
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
_SETTINGS = {field.name for field in dataclasses.fields(Config)}
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
        "derived": derived(),
        **operations(),
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
    for field in dataclasses.fields(Config):
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
    if field.default_factory is not dataclasses.MISSING:
        text = field.default_factory.__doc__.strip().rstrip(".")
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


# ---- derived tables


def derived() -> str:
    """Return a section for each derived table, with its columns, types and units."""
    names = [name for name in analysis.__all__ if name.endswith("_of")]
    return "\n".join(_result(name.removesuffix("_of")) for name in sorted(names))


def _result(name: str) -> str:
    result: analysis.Result = getattr(analysis, name.upper())
    lines = [f"## {name}", ""]
    lines += [f"Made from {_listed(result.needs)}.", ""]
    lines += ["| column | pandas type | unit | meaning |", "|---|---|---|---|"]
    for column in result.columns:
        shown = f"`{column.name}`" + (r" \*" if column.required else "")
        cells = [shown, result.dtypes[column.name], column.unit or ""]
        lines.append(f"| {' | '.join(cells)} | {_cell(column.description)} |")
    return "\n".join([*lines, ""])


# ---- operations


def operations() -> dict[str, str]:
    """Return tables of schedules and sensors, of jobs, and of the options of ops.

    They are asked for in a process of its own, in an empty folder and without settings:
    what is shown are the defaults, and nothing of this machine.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TIF1_", "DAGSTER_"))
    }
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    program = "import generate; print(generate.loaded_operations())"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603 - this interpreter and the line above
            [sys.executable, "-c", program],
            cwd=folder,
            env=environment | {"HOME": folder},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout)


def loaded_operations() -> str:
    """Return the same, as JSON, of the definitions as they load in this process."""
    from tif1_pipeline.definitions import defs

    repository = defs.get_repository_def()
    jobs = sorted(
        (
            job
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")  # those that Dagster makes of assets
        ),
        key=lambda job: job.name,
    )
    events = ["| what | when | at first | does | settings |", "|---|---|---|---|---|"]
    events += [_schedule_row(each) for each in _by_name(repository.schedule_defs)]
    events += [_sensor_row(each) for each in _by_name(repository.sensor_defs)]
    work = ["| job | ops | does |", "|---|---|---|", *map(_job_row, jobs)]
    ops = {op.name: op for job in jobs for op in _ops_of(job)}
    choices = ["| option | of the ops | default | meaning |", "|---|---|---|---|"]
    options: dict[tuple[str, str, str], list[str]] = {}
    for op in ops.values():
        for name, field in op.config_schema.config_type.fields.items():
            default = f"`{field.default_value}`" if field.default_provided else ""
            meaning = _sentences([field.description or "?"])
            options.setdefault((name, default, meaning), []).append(op.name)
    for (name, default, meaning), owners in sorted(options.items()):
        shown = "all" if len(owners) == len(ops) else _listed(owners)
        choices.append(f"| `{name}` | {shown} | {default} | {meaning} |")
    tables = {"operations": events, "jobs": work, "options": choices}
    return json.dumps({name: "\n".join(lines) + "\n" for name, lines in tables.items()})


def _schedule_row(schedule: Any) -> str:
    what = f"`{schedule.name}`<br>starts `{schedule.job_name}`"
    when = f"`{schedule.cron_schedule}` in {schedule.execution_timezone}"
    return _row(what, when, schedule)


def _sensor_row(sensor: Any) -> str:
    targets = [
        target.job_name
        for target in getattr(sensor, "targets", ())
        if not target.job_name.startswith("__")
    ]
    what = f"`{sensor.name}`" + "".join(f"<br>starts `{name}`" for name in targets)
    seconds = sensor.minimum_interval_seconds
    return _row(what, f"every {_duration(timedelta(seconds=seconds))}", sensor)


def _row(what: str, when: str, instigator: Any) -> str:
    status = "on" if instigator.default_status.value == "RUNNING" else "off"
    words = dict.fromkeys(re.findall(r"\w+", instigator.description))
    settings = _listed(word for word in words if word in _SETTINGS)
    # What the other columns say is left out.
    does = re.sub(
        r"^Every [^.;]{1,50}?: |, every \d+ s(?=\.)", "", instigator.description
    )
    sentences = [
        sentence
        for sentence in re.split(r"(?<=\.) (?=[A-Z])", does)
        if not re.match(r"At `|(On|Off|Running) by", sentence)
    ]
    return f"| {what} | {when} | {status} | {_sentences(sentences)} | {settings} |"


def _sentences(sentences: Iterable[str]) -> str:
    text = " ".join(sentences).removesuffix(".")
    named = re.sub(
        r"(?<!`)\b[a-z]\w*_\w+\b(?!`)",
        lambda found: f"`{found[0]}`" if found[0] in _SETTINGS else found[0],
        text,
    )
    return _cell(named[0].upper() + named[1:])


def _job_row(job: Any) -> str:
    ops = "<br>".join(f"`{op.name}`" for op in _ops_of(job))
    does = _sentences(job.description.split())
    return f"| `{job.name}` | {ops} | {does} |"


def _ops_of(job: Any) -> list[Any]:
    return [node.definition for node in job.graph.nodes_in_topological_order]


def _by_name(definitions: Iterable[Any]) -> list[Any]:
    return sorted(definitions, key=lambda each: each.name)


def _listed(names: Iterable[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in names)
