"""Which wandb server and key there are, and what the server says to the key; nothing here ever prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lorsa.runner.errors import UserError

ANSWER_SECONDS = 5.0
LOGIN = "set WANDB_API_KEY or run wandb login"

_VIEWER = "query Viewer { viewer { entity } }"


class UnreachableError(UserError):
    """The server does not answer; it may later."""


@dataclass(frozen=True)
class Account:
    """A server, and who the key is of.

    Attributes:
        url: of the server.
        entity: the default user or team.
    """

    url: str
    entity: str


def quiet() -> None:
    """Have wandb print nothing and report no errors of this process to its makers; before it is imported."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_CONSOLE"] = "off"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def require() -> None:
    """Refuse where wandb is not installed.

    Raises:
        UserError: says how to install it.
    """
    quiet()
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError(f"wandb is not installed ({error}): pip install 'lorsa[wandb]'.") from error


def server() -> str:
    """Return the server's address, from WANDB_BASE_URL or wandb's settings files."""
    from wandb.sdk import wandb_setup

    return str(wandb_setup.singleton().settings.base_url)


def find_key() -> str | None:
    """Return the key for the server, from WANDB_API_KEY, ~/.netrc or wandb's settings; None where there is none.

    Raises:
        UserError: there is one, and it cannot be one.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    try:
        auth = wbauth.authenticate_session(host=server(), source="lorsa", prompt=False)
    except AuthenticationError as error:
        raise UserError(f"The wandb key is wrong: {_first_line(error).rstrip('.')}; {LOGIN}.") from error
    if auth is None:
        return None
    # An identity token is exchanged by wandb itself.
    return auth.api_key if isinstance(auth, wbauth.AuthApiKey) else ""


def check_account(key: str | None) -> Account:
    """Ask the server who the key is of.

    Args:
        key: from `find_key`.

    Raises:
        UnreachableError: the server does not answer.
        UserError: there is no key, or the server does not take it.
    """
    import requests

    url = server()
    if key is None:
        raise UserError(f"There is no key for wandb at {url}: {LOGIN}.")
    if key == "":
        return _checked_token(url)
    try:
        answer = requests.post(
            f"{url}/graphql", json={"query": _VIEWER}, auth=("api", key), timeout=(ANSWER_SECONDS, ANSWER_SECONDS)
        )
    except requests.RequestException as error:
        raise UnreachableError(f"wandb at {url} cannot be reached ({type(error).__name__}).") from error
    if answer.status_code in (401, 403):
        raise _refused(url)
    try:
        answer.raise_for_status()
        viewer = (answer.json().get("data") or {}).get("viewer")
    except (requests.RequestException, ValueError, AttributeError) as error:
        raise UnreachableError(f"wandb at {url} does not answer as it should (status {answer.status_code}).") from error
    if not viewer:
        raise _refused(url)
    return Account(url, str(viewer.get("entity") or ""))


def default_entity(account: Account) -> str:
    """Return the user or team that runs go to which name none: WANDB_ENTITY's, as in training, or the key's own."""
    return os.environ.get("WANDB_ENTITY") or account.entity


def _checked_token(url: str) -> Account:
    """Check an identity token, which wandb exchanges for a session."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    try:
        wbauth.authenticate_session(host=url, source="lorsa", prompt=False, verify=True).verify()  # type: ignore[union-attr]
    except AuthenticationError as error:
        raise UserError(f"wandb at {url} does not take the identity token: {_first_line(error)}") from error
    return Account(url, "")


def _refused(url: str) -> UserError:
    return UserError(f"wandb at {url} does not take the key: it is wrong, or its session has expired; {LOGIN}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
