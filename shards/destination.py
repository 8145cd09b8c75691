"""Where a build writes: a local folder, or one at a URL. Both hold a file whole or not at all."""

from pathlib import Path

from shards.errors import InputError
from shards.localfolder import LocalFolder
from shards.remotefolder import RemoteFolder
from shards.url import LOCAL, check, is_url, redact

Destination = LocalFolder | RemoteFolder


def find(out: str | Path) -> Destination:
    """Return where `out` is; raises InputError for a URL that is not written."""
    text = str(out)
    if not is_url(text):
        return LocalFolder(Path(out))
    scheme = check(text)
    if scheme in LOCAL:
        return LocalFolder(Path(text.partition("://")[2]))
    if scheme in ("http", "https"):
        raise InputError(f"--out {redact(text)}: nothing is written over {scheme}; give a folder or s3://BUCKET/PREFIX")
    if set("*?[") & set(redact(text)):
        raise InputError(f"--out {redact(text)}: *, ? and [ stand for other names in addresses; name another prefix")
    return RemoteFolder(text.rstrip("/"))
