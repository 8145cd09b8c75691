"""Where a dataset lies: a local folder or a URL, which runs nothing, chains nothing and keeps its secrets."""

import re
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from shards.errors import InputError

LOCAL = ("file", "local")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://|::.*://)")
# File systems of fsspec that stand on another one, which their address or options name: a way round every check here.
_CHAINING = {
    "asyncwrapper",
    "async_wrapper",
    "blockcache",
    "cached",
    "data",
    "dir",
    "filecache",
    "generic",
    "libarchive",
    "reference",
    "simplecache",
    "tar",
    "zip",
}
_WORDS = "give a folder, s3://BUCKET/PREFIX, http(s)://HOST/PREFIX or another plain fsspec URL"


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path; `pipe:` counts, so that it is refused and not looked for."""
    return _SCHEME.match(place) is not None or place.lower().startswith("pipe:")


def check(url: str) -> str:
    """Return the scheme of a URL that may be read, in lower case.

    Raises:
        InputError: it would run a command (`pipe:`), or chains file systems (`::`, `zip://` and the like).
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else url.partition(":")[0].lower()
    if scheme == "pipe" or not match:
        raise InputError(f"{scheme}: URLs run a command, which is never done here; {_WORDS}")
    if "::" in url or scheme in _CHAINING:
        raise InputError(f"{redact(url)}: chains of file systems are not read; {_WORDS}")
    if scheme not in LOCAL and not urlsplit(url).netloc.rpartition("@")[2]:
        raise InputError(f"{redact(url)}: names no host or bucket; {_WORDS}")
    if scheme in ("http", "https") and not re.fullmatch(r"\d*", _port(url)):
        raise InputError(f"{scheme}: an address has no port number after its host; write a / in a password as %2F")
    return scheme


def _port(url: str) -> str:
    host = urlsplit(url).netloc.rpartition("@")[2]
    return "" if host.endswith("]") else host.rpartition(":")[2] if ":" in host else ""


def join(url: str, name: str) -> str:
    """Return the URL of a file in the folder `url`; a query (an access key of the folder's) stays at the end."""
    folder, mark, query = url.partition("?") if url.lower().startswith("http") else (url, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def ascend(url: str, place: str) -> str:
    """Return the URL of the folder that `place` names as seen from the folder `url`, as in `../tars`.

    Raises InputError where it leads out of the host or bucket.
    """
    plain, mark, query = url.partition("?") if url.lower().startswith("http") else (url, "", "")
    scheme, _, rest = plain.partition("://")
    host, _, folder = rest.partition("/")
    if place.startswith("/"):
        raise InputError(f"the place {place} of a shard is no folder of {redact(url)}")
    steps = [step for step in folder.split("/") if step]
    for step in place.split("/"):
        if step == "..":
            if not steps:
                raise InputError(f"the place {place} of a shard leads out of {redact(url)}")
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    return f"{scheme}://{host}/{'/'.join(steps)}{mark}{query}"


def redact(text: str) -> str:
    """Return a URL, or a text with URLs in it, without user names, passwords and queries.

    A quote may be a part of them, so what follows one without a space goes too.
    """
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1", text)


def public(value: Any) -> Any:
    """Return nested tables and lists with every URL in them redacted."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    return redact(value) if isinstance(value, str) and is_url(value) else value


def folder_name(url: str) -> str:
    """Return a folder name for what is kept of a URL: readable, different for every URL, and without its secrets."""
    plain = redact(url).rstrip("/")
    last = re.sub(r"[^A-Za-z0-9._-]", "_", plain.rpartition("/")[2])[-40:].lstrip(".")
    return f"{last}-{sha256(plain.encode()).hexdigest()[:16]}"
