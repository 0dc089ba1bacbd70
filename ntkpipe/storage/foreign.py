"""Files that other programs leave in folders: file managers, network file systems, cloud folders. None of them is an object."""

from __future__ import annotations

import re

OWN_FOLDERS = (".leases", ".compiled", ".probe")
"""Hidden folders of a store that are ntkpipe's own; whatever lies in them is."""

# Hidden files and folders (.DS_Store, ._name, .nfs0001, .Trash-1000, .snapshot), those of Windows and of storage boxes, and
# conflict copies, whose names have what no name of ours has: "name (1)", "name (conflicted copy)", "name - Copy", "name~".
_NAME = re.compile(
    r"\.|(?:desktop\.ini|(?:eh)?thumbs\.db|lost\+found|__macosx)$|.*[\s~#$@()]|.*\.sync-conflict-", re.IGNORECASE
)


def is_foreign_name(name: str) -> bool:
    """Whether a file or folder of that name is another program's."""
    return _NAME.match(name) is not None


def is_foreign_key(key: str) -> bool:
    """Whether no object can have this key, since a part of it is another program's name."""
    if key.startswith(OWN_FOLDERS) and key.partition("/")[0] in OWN_FOLDERS:
        return False
    return any(map(is_foreign_name, key.split("/")))
