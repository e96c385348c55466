"""Find pretrained models and tokenizers: a folder, a GGUF file, or the Hub if it can be reached. Free of torch."""

import functools
import importlib.util
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError, first_line

PATIENCE = 3  # seconds to wait for the Hub


def source(name: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` for a folder, a GGUF file or a name on the Hub.

    If the Hub cannot be reached, transformers must look into the Hub's cache only: it would otherwise
    retry for most of a minute.

    Raises:
        OSError: there is no such file or folder.
        ImportError: a package that reads GGUF files is missing.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        if missing := [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]:
            raise ImportError(f"to read GGUF files, pip install {' '.join(missing)}")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        raise OSError("a file, but no .gguf file")
    if is_path(name):
        raise OSError("no such file or folder")
    return {"pretrained_model_name_or_path": name, "local_files_only": not reachable()}


def is_path(name: str) -> bool:
    """Whether the name can only be a file or folder, because the Hub has no such names."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith(".gguf")


def require(key: str, name: str) -> None:
    """Raise `UserError` if a model or tokenizer surely cannot be loaded. The check is quick, because it loads nothing."""
    try:
        given = source(name)
        if given.get("local_files_only") and not _cached(name):
            raise OSError("the Hub cannot be reached, and its cache on this machine does not have it")
    except (OSError, ImportError) as error:
        raise not_loaded(key, name, error) from None


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def is_offline() -> bool:
    """Whether the user has told the libraries of the Hub to do without it."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")


@functools.cache
def reachable() -> bool:
    """Whether the Hub answers. The Hub is asked once per process."""
    if is_offline():
        return False
    try:
        # An address without http:// raises `ValueError`.
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:  # an error page is an answer
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # a server is there; transformers may trust its certificate
    except (OSError, ValueError):
        return False
    return True


def not_loaded(key: str, name: str, error: BaseException) -> UserError:
    """The error for a model or tokenizer that cannot be loaded: the reason, and the choices besides the Hub."""
    return UserError(
        f"{key}={name}: cannot be loaded ({first_line(error)}); without network give a local folder or .gguf file, or "
        "random weights with model.pretrained=false and a local model.tokenizer (a folder, or symbols)"
    )
