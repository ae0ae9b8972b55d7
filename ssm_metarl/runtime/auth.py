"""Ray's token authentication: which clusters need it, whether this process has a token, and that its file is private.

Ray reads ``RAY_AUTH_MODE`` (token or disabled), and the token from ``RAY_AUTH_TOKEN``, else from the file named by
``RAY_AUTH_TOKEN_PATH``, else from ``~/.ray/auth_token``. Whoever reaches a cluster without it can run code there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from ssm_metarl.config import ConfigError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the program of a job, along with the RAY_ADDRESS of the job's own cluster."""
ON_CLUSTER = (
    "on the cluster: the same token in ~/.ray/auth_token of every node (umask 077; ray get-auth-token --generate makes "
    f"one), and export {MODE}=token before ray start"
)
HERE = f"here: export {MODE}=token, with that token in {TOKEN} or in the file {TOKEN_PATH} (default ~/.ray/auth_token)"


def is_loopback(address: str) -> bool:
    """Whether an address (``HOST:PORT``, ``http://HOST:PORT``, ``auto``, ``local``) never leaves this machine."""
    if address in ("", "auto", "local"):
        return True
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        if host == "localhost":
            return True
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(number, "ipv4_mapped", None) or number).is_loopback


def token_file() -> Path:
    """The file that Ray reads the token from, unless the environment has it."""
    return Path(os.environ.get(TOKEN_PATH) or _default_file())


def missing_token() -> str:
    """Why this process would show a cluster no token; empty if it would."""
    mode = os.environ.get(MODE, "")
    if mode.lower() != "token":
        return f"{MODE} is {mode or 'not set'}"
    if os.environ.get(TOKEN):
        return ""
    try:
        return "" if token_file().read_text(encoding="utf-8").strip() else f"{token_file()} is empty"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        return f"{TOKEN} is not set, and {token_file()} cannot be read: {reason}"


def require_token(address: str, setting: str = "RAY_ADDRESS") -> None:
    """Refuses to join or use a cluster at a non-loopback address without token authentication.

    A job's program may join its own cluster: it runs there already, and whoever sent it was asked.

    Args:
        address: of the cluster.
        setting: what the user calls it.

    Raises:
        ConfigError: with the words that turn it on. Also if it is on and there is no token.
    """
    missing = missing_token()
    is_on = os.environ.get(MODE, "").lower() == "token"
    if not missing or IN_JOB in os.environ or (is_loopback(address) and not is_on):
        return
    if is_on:
        raise ConfigError(f"{setting}={address}: {MODE} is token, but {missing}; {HERE}")
    raise ConfigError(
        f"{setting}={address} is not on this machine, and without token authentication whoever reaches such a "
        f"cluster can run code on it: {missing}\n{ON_CLUSTER}\n{HERE}"
    )


def private_token_file(make: bool = True) -> None:
    """Sees to it that ``~/.ray/auth_token`` can be read by nobody else; call it before Ray starts on this machine.

    Ray writes one with whatever mode the umask gives. A file named by ``RAY_AUTH_TOKEN_PATH`` is its owner's business.

    Args:
        make: also writes a new token, at once whole and private, if Ray is about to.

    Raises:
        ConfigError: it cannot be written.
    """
    path = _default_file()
    try:
        if path.exists():
            _tighten(path)
        elif make and _ray_will_write():
            _write(path)
    except OSError as error:
        raise ConfigError(
            f"Ray's token cannot be kept in {path}: {error.strerror or error}; set HOME to a folder that you may write "
            f"to, or {TOKEN_PATH} to a file with a token in it"
        ) from error


def is_private(path: Path) -> bool:
    """Whether nobody but its owner (and root) can read a file."""
    return not path.stat().st_mode & 0o077


def _default_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _ray_will_write() -> bool:
    mode = os.environ.get(MODE)
    return (mode is None or mode.lower() == "token") and not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH))


def _tighten(path: Path) -> None:
    if path.stat().st_uid == os.geteuid() and not is_private(path):
        path.chmod(0o600)


def _write(path: Path) -> None:
    """A file that is mode 0600 from the start, and that no reader finds empty."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # Another process was faster; all must use the same token.
            os.link(part, path)
    finally:
        os.unlink(part)
