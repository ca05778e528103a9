"""`config`: the settings in force."""

import json
import os
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from tif1_pipeline.cli.options import json_option
from tif1_pipeline.cli.output import Column, duration, print_json, print_pairs, print_table, printable
from tif1_pipeline.config import ENV_PREFIX, Config, load_config, setting_help

_WIDTH = 100


@click.command()
@click.argument("name", required=False)
@json_option
@click.option("--toml", "as_toml", is_flag=True, help="Print a settings file of all settings, with their defaults.")
def config(name: str | None, as_json: bool, as_toml: bool) -> None:
    """Show the settings: value, default, source and meaning.

    Settings come, from weak to strong, from their defaults, from environment variables TIF1_NAME, and from
    [tool.tif1_pipeline] of pyproject.toml in the working directory or of the file that TIF1_CONFIG names. Secrets are
    not shown.

    \b
    Examples:
      tif1-pipeline config
      tif1-pipeline config cache_dir
      tif1-pipeline config --json | jq '.[] | select(.source != "default")'
      tif1-pipeline config --toml > tif1.toml      then: export TIF1_CONFIG=tif1.toml
    """  # noqa: D301
    if as_toml:
        if name is not None or as_json:
            raise click.UsageError("--toml prints all settings: leave NAME and --json out")
        click.echo(_settings_file())
        return
    rows = _described()
    if name is not None:
        name = name.lower().removeprefix(ENV_PREFIX.lower())
        if name not in setting_help():
            setattr(Config(), name, None)  # its error names the settings that are close
        row = next(row for row in rows if row["name"] == name)
        print_json(row) if as_json else _show(row)
    elif as_json:
        print_json(rows)
    else:
        shown = [row | {"value": _text(row["value"]), "default": _text(row["default"])} for row in rows]
        print_table(
            shown,
            (
                Column("Setting", "name", "key"),
                Column("Value", "value", "key"),
                Column("Source", "source"),
                Column("Default", "default", "key", 110),
                Column("Meaning", "help", "key", 140),
            ),
        )


def _described() -> list[dict[str, Any]]:
    from tif1_pipeline import api

    in_force, default = api.get_config(), Config()
    named = {key: value for key, value in os.environ.items() if key == f"{ENV_PREFIX}CONFIG"}
    from_file = load_config(named)
    values, defaults = in_force.to_dict(), default.to_dict()
    return [
        {
            "name": name,
            "value": values[name],
            "default": defaults[name],
            "source": _source(name, in_force, default, from_file),
            "help": meaning,
        }
        for name, meaning in setting_help().items()
    ]


def _source(name: str, in_force: Config, default: Config, from_file: Config) -> str:
    value = getattr(in_force, name)
    if value == getattr(default, name):
        return "default"
    if value == getattr(from_file, name):
        return "file"
    return "environment" if f"{ENV_PREFIX}{name.upper()}" in {key.upper() for key in os.environ} else "assigned"


def _show(row: dict[str, Any]) -> None:
    print_pairs(
        {
            "Setting": row["name"],
            "Value": _text(row["value"]),
            "Default": _text(row["default"]),
            "Source": row["source"],
            "Meaning": row["help"],
            "Variable": f"{ENV_PREFIX}{row['name'].upper()}",
        }
    )


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return duration(value)
    if isinstance(value, tuple):
        return ", ".join(value)
    return printable(str(value))


def _settings_file() -> str:
    lines = [
        "# Settings of tif1_pipeline: take the '#' off a line to change it. Durations: 90s, 15m, 6h, 7d.",
        "# The file is found as pyproject.toml in the working directory, or by the environment variable TIF1_CONFIG.",
        "[tool.tif1_pipeline]",
    ]
    default = Config()
    for name, meaning in setting_help().items():
        lines += ["", *textwrap.wrap(meaning, _WIDTH, initial_indent="## ", subsequent_indent="## ")]
        lines.append(f"#{name} = {_toml(getattr(default, name))}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Path):
        home = Path.home()
        value = f"~/{value.relative_to(home)}" if value.is_relative_to(home) else value
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(_text(value), ensure_ascii=False)
