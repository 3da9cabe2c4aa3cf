"""
A disk that is full, a real one: small, in memory, and seen by one process alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stress import full

SIZE = 1_500_000  # bytes
PATIENCE = 120.0  # seconds
# In a mount namespace of its own, which is gone with the process.
SMALL_DISK = f'mount -t tmpfs -o size={SIZE} tmpfs "$0" && exec "$@"'


def on_small_disk(folder: Path, *program: str) -> subprocess.CompletedProcess[str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare(1) here, which a disk of its own needs")
    command = [unshare, "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(folder)]
    return subprocess.run(
        [*command, *program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if (tried := on_small_disk(tmp_path, "true")).returncode:
        pytest.skip(f"this machine mounts nothing for its users: {tried.stderr.strip()}")
    return tmp_path


def test_a_full_disk_refuses_publishes_and_loses_nothing(folder: Path) -> None:
    """
    No handler sees what was refused; when there is room again, all goes on by itself.
    """
    ended = on_small_disk(folder, sys.executable, full.__file__, str(folder))
    assert (0, "") == (ended.returncode, ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout)
    last = found["published"][-1]
    assert list(range(1, last + 1)) == sorted(found["published"] + found["refused"])
    assert list(range(last - 4, last + 1)) == found["published"][-5:]
    assert found["published"] == found["inline"] == found["durable"]
    assert (True, [], 0) == (found["drained"], found["damage"], found["lag"])
