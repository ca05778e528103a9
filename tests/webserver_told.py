"""What a Dagster webserver tells without being told of what, by queries that are made from its own schema.

Not what it tells of a single run, job or asset that one has to name: of the runs, that is in its files as it is told.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import graphql

_DEPTHS = (5, 4, 3)
_LONGEST = 12_000
"""Characters of a query: the deepest that is no longer is asked."""
_TRIES = 20
_TOLD_TWICE = {"pipelineRunsOrError", "repositoryOrError"}
Ask = Callable[..., Any]


def everything(ask: Ask, repository: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Return the name of each question, and all that is answered, as text.

    Args:
        ask: Sends a query and its variables; returns what came back, with its errors.
        repository: The selector of the repository.
    """
    schema = graphql.build_client_schema(ask(graphql.get_introspection_query())["data"])
    query = schema.query_type
    assert query is not None
    for name, field in query.fields.items():
        required = [arg for arg, kind in field.args.items() if graphql.is_required_argument(kind)]
        known = {"repositorySelector": repository, "repositoryLocationName": repository["repositoryLocationName"]}
        if not set(required) <= known.keys() or name in _TOLD_TWICE:
            continue
        yield name, str(_ask(ask, schema, name, {arg: known[arg] for arg in required}))


def _ask(ask: Ask, schema: graphql.GraphQLSchema, name: str, arguments: dict[str, Any]) -> list[Any]:
    """Ask a question in full, and again without the fields that Dagster has no answer to; returns all answers."""
    assert schema.query_type is not None
    field = schema.query_type.fields[name]
    declared = ", ".join(f"${arg}: {field.args[arg].type}" for arg in arguments)
    passed = ", ".join(f"{arg}: ${arg}" for arg in arguments)
    answers: list[Any] = []
    left_out: set[str] = set()
    for _ in range(_TRIES):
        selections = [_fields(schema, field.type, depth, (), left_out) for depth in _DEPTHS]
        selection = next((each for each in selections if len(each) <= _LONGEST), selections[-1])
        head = f"query({declared})" if declared else "query"
        text = f"{head} {{ {name}{f'({passed})' if passed else ''} {selection} }}"
        answers.append(ask(text, **arguments))
        failed = {_name(error["path"]) for error in answers[-1].get("errors", ()) if error.get("path")}
        if not failed - left_out - {name}:
            break
        left_out |= failed
    return answers


def _name(path: list[str | int]) -> str:
    """Return the last field of a path, without the number that tells it from those of other types."""
    return next(re.sub(r"_\d+$", "", step) for step in reversed(path) if isinstance(step, str))


def _fields(schema: graphql.GraphQLSchema, type_: Any, depth: int, path: tuple[str, ...], out: set[str]) -> str:
    named = graphql.get_named_type(type_)
    if graphql.is_leaf_type(named):
        return ""
    if graphql.is_union_type(named) or graphql.is_interface_type(named):
        parts = []
        for number, possible in enumerate(schema.get_possible_types(named)):
            inner = _of_object(schema, possible, depth, path, out, alias=f"_{number}")
            if inner:
                parts.append(f"... on {possible.name} {{ {inner} }}")
        return "{ __typename " + " ".join(parts) + " }"
    inner = _of_object(schema, named, depth, path, out)
    return f"{{ {inner or '__typename'} }}"


def _of_object(schema: Any, type_: Any, depth: int, path: tuple[str, ...], out: set[str], alias: str = "") -> str:
    if not depth or type_.name in path:
        return ""
    parts = []
    for name, field in type_.fields.items():
        if name in out or any(graphql.is_required_argument(arg) for arg in field.args.values()):
            continue
        # Types of a union may have fields of one name that differ: each gets a name of its own.
        asked = f"{name}{alias}: {name}" if alias else name
        if graphql.is_leaf_type(graphql.get_named_type(field.type)):
            parts.append(asked)
        elif depth > 1:
            inner = _fields(schema, field.type, depth - 1, (*path, type_.name), out)
            parts.append(f"{asked} {inner}")
    return " ".join(parts)
