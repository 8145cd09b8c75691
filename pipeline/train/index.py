"""The index of a checkpoint: what it holds, as JSON that also holds the digest of its own text."""

import hashlib
import json
from typing import Any

INDEX = "index.json"
FORMAT = 3

_BLANK = "0" * 64  # where the digest stands while it is computed


def sealed(content: dict[str, Any]) -> str:
    """Return the text of an index, of which no byte can change unseen."""
    text = json.dumps({**content, "format": FORMAT, "sha256": _BLANK}, indent=1)
    return text.replace(_BLANK, _digest(text.encode()), 1)


def is_sealed(data: bytes) -> bool:
    """Whether the bytes of an index are those that were written.

    Raises:
        ValueError, AttributeError: they are no JSON, or no object.
    """
    digest = json.loads(data).get("sha256")
    return isinstance(digest, str) and _digest(data.replace(digest.encode(), _BLANK.encode(), 1)) == digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
