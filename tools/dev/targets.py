#!/usr/bin/env python3
"""Run the kernels' tests at every level of the CPU that this computer can run: 4, 8 and 16 lanes.

    python tools/dev/targets.py                        # tests/test_kernels.py and tests/test_compiled.py
    python tools/dev/targets.py tests/test_kernels.py -k stem

Arguments are pytest's; files begin with "tests". The exit code is 1 if a test fails at any level.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from alnumpy.errors import AlnumpyError
from alnumpy.kernels.target import LEVELS, choose

FILES = ["tests/test_kernels.py", "tests/test_compiled.py"]
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    files = [] if any(argument.startswith("tests") for argument in sys.argv[1:]) else FILES
    arguments = [*sys.argv[1:], *files]
    failed = []
    for level in LEVELS:
        try:
            choose(level)
        except AlnumpyError as error:
            print(error)
            continue
        print(f"{level}: {LEVELS[level]} lanes", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        status = subprocess.run(command, cwd=ROOT, env=os.environ | {"ALNUMPY_TARGET": level}, check=False).returncode
        if status:
            failed.append(f"{level} (exit status {status})")  # below 0: ended by a signal
    print(f"failed: {', '.join(failed)}" if failed else "passed at every level")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
