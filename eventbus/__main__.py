"""
The command line: ``python -m eventbus STORE ...``.

Law: a door. What is behind it lives in `eventbus._cli`.
"""

from __future__ import annotations

import sys

from eventbus._cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
