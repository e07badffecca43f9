"""Anything that may lie at the path of a file: documents of the wrong shape, and what is no file at all."""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

__all__ = ["BAD_VALUES", "CONTENTS", "KINDS", "contents", "plant"]

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "half": b'{"slot": "gre',
    "not UTF-8": b'{"slot": "\xff\xfe"}',
    "zeros": bytes(4096),
    "nested": b"[" * 100_000,
    "huge integer": b'{"weight": ' + b"9" * 4000 + b"}",
    "very huge integer": b"9" * 100_000,
    "NaN": b'{"slot": "green", "weight": NaN}',
    "infinite": b'{"slot": "green", "weight": 1e999}',
    "surrogate": b'{"slot": "green", "weight": 1, "sticky": "\\ud800"}',
}
BAD_VALUES: list[Any] = [
    None, True, -1, 2**63, 10**400, 1.5, float("nan"), float("inf"), 1e308, "", "x\x1b[2Jx", "\ud800", "a\0b", "../..",
    "x" * 5000, [], [None], {}, {"": None},
]  # fmt: skip
KINDS = ("directory", "FIFO", "device", "socket", "loop", "dangling link", "link to a device", "huge file")

_numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**18), 2**63, 2**64, -1, 0, 1e308]))
_texts = st.one_of(
    st.text(max_size=20), st.sampled_from(["\ud800", "\x00", "\x1b[2J", "../../etc", "green", "x" * 5000])
)
_scalars = st.one_of(st.none(), st.booleans(), _numbers, _texts)
_documents = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4), max_leaves=12
)


@st.composite
def contents(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """Draw the content of a file: `good` with some fields replaced or missing, cut off, or anything else."""
    document: Any = dict(good)
    for name in draw(st.lists(st.sampled_from(sorted(good)), max_size=3)):
        document[name] = draw(_documents)
    for name in draw(st.lists(st.sampled_from(sorted(good)), max_size=1)):
        document.pop(name, None)
    text = json.dumps(draw(st.one_of(st.just(document), _documents))).encode()
    how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "bytes", "example"]))
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if how == "bytes":
        return draw(st.binary(max_size=300))
    return draw(st.sampled_from(sorted(CONTENTS.values()))) if how == "example" else text


def plant(path: Path, what: str) -> None:
    """Put something that is no usable file at `path`: one of KINDS, or the content of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if what in CONTENTS:
        path.write_bytes(CONTENTS[what])
    elif what == "directory":
        path.mkdir()
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends
        except PermissionError:
            path.symlink_to("/dev/zero")
    elif what == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
    elif what == "huge file":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to({"loop": path.name, "dangling link": "nothing", "link to a device": "/dev/zero"}[what])
