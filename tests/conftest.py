"""
What holds for the whole suite: how hypothesis searches.

Fixtures of one room stand in that room's test file; contract suites stand in
``tests/contracts`` and are imported as ``contracts.<port>``.
"""

from __future__ import annotations

import os

import hypothesis

# No test may depend on how quick the machine is today, hence no deadline. With CI set the
# examples are the same in every run, so that a commit is not blamed for another one's bug.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")
