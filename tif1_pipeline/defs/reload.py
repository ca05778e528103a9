"""Having the code location loaded anew, which is how new partitions appear."""

from urllib.parse import unquote, urlsplit

import dagster as dg

_SECONDS = 30
"""How long the webserver is waited for. It answers when the code has been loaded; a tick is given up after 60 s."""


def reload_location(context: dg.SensorEvaluationContext, webserver_url: str) -> str | None:
    """Ask the webserver to load the sensor's own code location anew, and wait until it has.

    This may be called from a tick: Dagster starts another code server, and lets the calls that are under way in the
    former one finish.

    Args:
        context: Of the tick.
        webserver_url: Where the webserver is; a user and a password in it are sent.

    Returns:
        Why it was not done and what to do, in words; None when it was.
    """
    origin = context.code_location_origin
    if origin is None:
        return "this tick was not started by a Dagster daemon, so there is no code location to reload"
    name = origin.location_name
    by_hand = f"it is tried again; by hand: Deployment > Code locations > {name} > Reload in the UI, or restart Dagster"
    shown = without_user(webserver_url)
    # Not at the top: importing it takes as long as importing Dagster, and few ticks need it.
    from dagster_graphql import DagsterGraphQLClientError, ReloadRepositoryLocationStatus

    try:
        answer = _client(webserver_url).reload_repository_location(name)
    except DagsterGraphQLClientError as error:
        cause = error.__cause__ or error
        return (
            f"the webserver at {shown} (setting webserver_url) could not be asked to reload the code location: "
            f"{type(cause).__name__}: {str(cause)[:300]}; {by_hand}"
        )
    if answer.status == ReloadRepositoryLocationStatus.SUCCESS:
        return None
    said = f"{answer.failure_type}: {(answer.message or '').strip()[:300]}"
    return f"the webserver at {shown} could not reload the code location {name}: {said}; {by_hand}"


def _client(webserver_url: str):
    from dagster_graphql import DagsterGraphQLClient
    from requests.auth import HTTPBasicAuth

    parts = urlsplit(webserver_url)
    host = parts.hostname or ""
    return DagsterGraphQLClient(
        f"[{host}]" if ":" in host else host,
        port_number=parts.port,
        use_https=parts.scheme == "https",
        timeout=_SECONDS,
        auth=HTTPBasicAuth(unquote(parts.username), unquote(parts.password or "")) if parts.username else None,
        path_prefix=parts.path.rstrip("/"),
    )


def without_user(url: str) -> str:
    """Return a URL without the user and password that it may hold."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
