"""Recognises files of other programs in a store's folder: file managers, network file systems, cloud folders.

These files are not objects of the store.
"""

from __future__ import annotations

import re

OWN_FOLDERS = (".leases", ".compiled", ".probe")
"""Hidden folders of a store that belong to ntkpipe, with all their content."""

# Hidden files and folders (.DS_Store, ._name, .nfs0001, .Trash-1000, .snapshot), files of Windows and of storage boxes,
# and conflict copies, whose names differ from ours: "name (1)", "name (conflicted copy)", "name - Copy", "name~".
_NAME = re.compile(
    r"\.|(?:desktop\.ini|(?:eh)?thumbs\.db|lost\+found|__macosx)$|.*[\s~#$@()]|.*\.sync-conflict-", re.IGNORECASE
)


def is_foreign_name(name: str) -> bool:
    """Return whether a file or folder of that name belongs to another program."""
    return _NAME.match(name) is not None


def is_foreign_key(key: str) -> bool:
    """Return whether a part of this key is a name of another program. No object can have such a key."""
    if key.startswith(OWN_FOLDERS) and key.partition("/")[0] in OWN_FOLDERS:
        return False
    return any(map(is_foreign_name, key.split("/")))
