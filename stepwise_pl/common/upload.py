"""Upload a folder to the Hub: a repository of a model, private unless it is to be public, and one commit. Free of torch."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepwise_pl.common import hub
from stepwise_pl.common.errors import UserError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The environment variable of the token. It is read nowhere else, and written nowhere.
TOKEN = "HF_TOKEN"
# The form of every name on the Hub; huggingface_hub checks the rest.
_NAME = re.compile(r"[^/\s]+/[^/\s]+")
_REASONS = {
    401: "the Hub does not know the token in HF_TOKEN; make another one that may write",
    403: "the token in HF_TOKEN may not write there; give a name of your own, or a token that may write",
    404: "the Hub has no such place, or the token in HF_TOKEN may not see it",
    409: "somebody else is changing the repository; try again",
    412: "somebody else has changed the repository meanwhile; try again",
    413: "the Hub finds a file too large",
    429: "the Hub takes no more requests for now; try again later",
}


class Pushed(NamedTuple):
    """A model on the Hub, after a push.

    Attributes:
        link: the page of the repository.
        commit: the link of the commit.
        private: whether only its owner sees it.
    """

    link: str
    commit: str
    private: bool


def require_name(name: str) -> None:
    """Raise `UserError` unless the name is one that a repository on the Hub may have, `user/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not _NAME.fullmatch(name):
        raise UserError(f"push={name}: is no name on the Hub; give push=<user>/<name>, or <organisation>/<name>")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"push={name}: is no name on the Hub ({first_line(error).rstrip('.')})") from None


def token_for(name: str) -> str:
    """Return the token of the environment.

    A login that huggingface_hub keeps in a file is not used: whoever pushes says so in the environment of the command.

    Raises:
        UserError: there is none, or it cannot be one. The message does not show it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(
            f"push={name}: {TOKEN} is not set; make a token that may write at {endpoint()}/settings/tokens, and set it in the "
            "environment of this command"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"push={name}: {TOKEN} holds characters that no token has; copy the token again")
    return token


def endpoint() -> str:
    """Return the address of the Hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def push(folder: Path, name: str, token: str, message: str, *, private: bool) -> Pushed:
    """Upload every file of a folder as one commit. The repository is made if it is not there.

    Files that the repository has and the folder lacks stay.

    Args:
        message: of the commit.
        private: a new repository is private. One that is there and public is then refused: the files would be public.

    Raises:
        UserError: the Hub cannot be reached, or refuses. The message never holds the token.
    """
    for library in ("httpx", "httpx2"):  # they log a line for each request
        logging.getLogger(library).setLevel(logging.WARNING)
    if not hub.reachable():
        why = "HF_HUB_OFFLINE is set" if hub.is_offline() else "check the network, or HF_ENDPOINT"
        raise UserError(f"push={name}: {endpoint()} cannot be reached; {why}")
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():  # bars would fill a log with lines
        disable_progress_bars()
    try:
        return _push(HfApi(endpoint(), token, library_name="stepwise_pl"), folder, name, message, private)
    except UserError:
        raise
    # The libraries beneath (HTTP, storage, JSON) raise errors of many types for what the network and the Hub do.
    except Exception as error:
        line = f"push={name}: {_reason(error)}".replace(token, "***")
    raise UserError(line)


def _push(api: "HfApi", folder: Path, name: str, message: str, private: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd

    api.create_repo(name, private=private, exist_ok=True)
    is_private = bool(api.model_info(name).private)
    if private and not is_private:
        raise UserError(
            f"push={name}: is there already, and public; private=false pushes into it, or give another name"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # Weights and card come in one commit, so that nobody finds one without the other. `upload_folder` may make several.
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    made = api.create_commit(name, added, commit_message=message)
    return Pushed(f"{endpoint()}/{name}", str(made.commit_url), is_private)


def _reason(error: Exception) -> str:
    """Say in one line why a push failed, from the answer of the Hub if there was one."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for each in chain:
        if isinstance(each, HfHubHTTPError) and each.response is not None:
            status = each.response.status_code
            words = f": {each.server_message}" if each.server_message else ""
            if status >= 500:
                return f"the Hub has failed ({status}{words}); try again later"
            return f"{_REASONS.get(status, 'the Hub refuses')} ({status}{words})"
    for each in chain:
        if isinstance(each, HTTPError | ConnectionError | TimeoutError):
            return f"the connection to {endpoint()} broke ({type(each).__name__}: {first_line(each)}); try again"
    return f"the upload failed ({type(error).__name__}: {' '.join(str(error).split())})"
