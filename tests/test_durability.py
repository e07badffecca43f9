"""What the slots' links say survives a loss of power: every change is on disk when the call that makes it returns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from service.contract import atomic
from service.contract.slots import SLOTS, Slots, release_target

Entries = dict[str, str]

CHANGES = st.one_of(
    st.tuples(st.just("live"), st.sampled_from(SLOTS)),
    st.tuples(st.sampled_from(SLOTS), st.sampled_from([release_target("1.0.0"), release_target("1.1.0"), None])),
)


class Disk:
    """The directories as they would be after a loss of power: with the entries that they had at their last fsync."""

    def __init__(self) -> None:
        self._synced: dict[Path, Entries] = {}

    def entries(self, directory: Path) -> Entries:
        return self._synced.get(directory, {})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note each fsync in the block, instead of waiting for the real disk."""

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self._synced[path] = entries(path)

        with mock.patch("os.fsync", fsync):
            yield


def entries(directory: Path) -> Entries:
    return {path.name: str(path.readlink()) if path.is_symlink() else path.read_text() for path in directory.iterdir()}


@given(st.lists(CHANGES, min_size=1, max_size=8))
def test_a_changed_link_is_on_disk(changes: list[tuple[str, str | None]]) -> None:
    """After each change of `live`, `blue` or `green` the directory on disk is the one that readers see."""
    with tempfile.TemporaryDirectory() as name:
        root, disk = Path(name), Disk()
        slots = Slots(root)
        with disk.watching():
            for link, target in changes:
                if link == "live":
                    slots.go_live(target or "")
                else:
                    slots.point(link, target)
                assert disk.entries(root) == entries(root)


def test_a_durable_file_is_on_disk(tmp_path: Path) -> None:
    """The name of a file that is replaced durably is on disk; that of another file need not be."""
    disk = Disk()
    with disk.watching():
        atomic.write_text(tmp_path / "state", "volatile")
        assert disk.entries(tmp_path) == {}
        atomic.write_text(tmp_path / "record", "durable", durable=True)
    assert disk.entries(tmp_path) == {"state": "volatile", "record": "durable"}
