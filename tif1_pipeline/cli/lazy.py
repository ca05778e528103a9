"""A group of commands whose modules are imported when they run: ``--help`` and ``ls`` must not wait for Dagster."""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

import click


class Verb(NamedTuple):
    """A command that is not imported yet.

    Attributes:
        home: ``module:name`` of the command.
        summary: What it does, on one line of the group's help.
    """

    home: str
    summary: str


class LazyGroup(click.Group):
    """A group that knows the homes and summaries of its commands, in sections.

    Args:
        sections: Commands by name, by title of their section, in the order of the help.
        **attributes: As for a group.
    """

    def __init__(self, *, sections: Mapping[str, Mapping[str, Verb]], **attributes: object) -> None:
        super().__init__(**attributes)  # type: ignore[arg-type]
        self.sections = sections
        self.verbs = {name: verb for verbs in sections.values() for name, verb in verbs.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        verb = self.verbs.get(cmd_name)
        if verb is None:
            return None
        module, _, name = verb.home.partition(":")
        return getattr(importlib.import_module(module), name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named first; for an unknown one the error names those that are close."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.verbs, n=3)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(close)}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, importing nothing."""
        widest = max(map(len, self.verbs))
        for title, verbs in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), verb.summary) for name, verb in verbs.items()])
