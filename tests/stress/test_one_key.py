"""
One publisher's key, and many who publish with it at once: one of them is the first.

Bounded in the number of publishes, and by ``PATIENCE`` in time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from eventbus.sqlite import SQLiteStore

PATIENCE = 120.0  # seconds
PROCESSES, THREADS, KEYS = 3, 4, 5

CHILD = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from eventbus import EventBus
from eventbus.sqlite import SQLiteStore

path, threads, keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
all_ready = threading.Barrier(threads)

def publish(bus, thread, key):
    all_ready.wait(60)
    receipt = bus.publish((thread, key), idempotency_key=f"key-{key}")
    return key, receipt.duplicate, receipt.id

sys.stdin.readline()
store = SQLiteStore(path, busy_timeout=60.0)
with EventBus(store=store) as bus, ThreadPoolExecutor(threads) as pool:
    for key in range(keys):
        told = [pool.submit(publish, bus, thread, key) for thread in range(threads)]
        for each in told:
            print(json.dumps(each.result(60)), flush=True)
"""


def test_of_all_who_publish_with_one_key_one_is_the_first(tmp_path: Path) -> None:
    """
    The others are duplicates, in threads and processes alike, and all are told its id.
    """
    path = tmp_path / "keys.db"
    SQLiteStore(path).close()
    command = [sys.executable, "-c", CHILD, str(path), str(THREADS), str(KEYS)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    printed = "".join(child.communicate(timeout=PATIENCE)[0] for child in children)
    told = [json.loads(line) for line in printed.splitlines()]
    assert PROCESSES * THREADS * KEYS == len(told)
    for key in range(KEYS):
        mine = [(is_duplicate, id) for of, is_duplicate, id in told if of == key]
        assert 1 == [is_duplicate for is_duplicate, _ in mine].count(False)
        assert 1 == len({id for _, id in mine})
    with SQLiteStore(path) as store:
        assert KEYS == len(list(store.log.read()))
