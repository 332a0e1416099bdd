"""The folder of one running cluster: slices of the config, Redis' own, logs. It goes with us."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "kvasir-run-"
MARK = "router.json"  # what each of them holds once something ran in it


@contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder that only we may read, as slices may hold the password of a Redis. What killed
    supervisors left behind is removed too."""
    remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The kernel drops the lock with our process. systemd-tmpfiles leaves locked folders alone.
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Removes run folders of this user whose supervisor is dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, not a folder, or not ours to read
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One without the mark may be so new that its owner has not locked it yet.
            if os.fstat(held).st_uid == os.getuid() and (folder / MARK).is_file():
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # its supervisor lives
        finally:
            os.close(held)
