"""
What holds for the whole suite: how hypothesis searches, and which threads count.

Fixtures of one room stand in that room's test file; contract suites stand in
``tests/contracts`` and are imported as ``contracts.<port>``.
"""

from __future__ import annotations

import _thread
import os

import hypothesis

from eventbus import _bus

# No test may depend on how quick the machine is today, hence no deadline. With CI set the
# examples are the same in every run, so that a commit is not blamed for another one's bug.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")

# A process that runs a share of the suite has a thread that talks to the others, and runs
# no code of ours. Were it counted, no publish here would be one of a program of one thread.
_idle_threads = _thread._count()
_count = _bus.other_threads
_bus.other_threads = lambda: _count() - _idle_threads
