"""What ``make test`` does: lint, unit tests and notebook structure, then every notebook against its saved outputs.

Notebooks that compute in whole numbers, or print nothing that a machine could change, are compared to the letter; of
the others the cells that say so (tagged nbval-check-output).

Each stage runs even where an earlier one failed; a short summary and one exit code come last. A notebook whose kernel
died before it replied (a start-up race under load, not a finding) is tried once more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PYTEST = [sys.executable, "-m", "pytest", "-q", "-n", str(CORES), "-p", "no:cacheprovider"]
NBVAL = [*PYTEST, "--dist", "loadscope", "--nbval-cell-timeout", "600", "--timeout", "1200"]
TO_THE_LETTER = [
    f"notebooks/tutorials/{name}.ipynb"
    for name in (
        "06_secret_sharing_by_hand",
        "07_spdz_with_a_cheat",
        "12_cheating_clients",
        "solutions/06_secret_sharing_by_hand",
        "solutions/11_encryption_and_psi",
    )
]
DIED = ("Kernel died before replying", "Kernel didn't respond", "Timeout waiting for kernel_info")


def stages() -> list[tuple[str, list[str]]]:
    """Name and command of each stage, in order."""
    return [
        ("lint", [sys.executable, "-m", "ruff", "check", "."]),
        ("format", [sys.executable, "-m", "ruff", "format", "--check", "."]),
        ("unit tests and notebook structure", [*PYTEST, "tests"]),
        ("saved outputs to the letter", [*NBVAL, "--nbval", *TO_THE_LETTER]),
        (
            "saved outputs against a fresh run",
            [*NBVAL, "--nbval-lax", *(f"--ignore={name}" for name in TO_THE_LETTER), "notebooks"],
        ),
    ]


def run(command: list[str]) -> tuple[int, str]:
    """Run ``command`` and show what it prints as it comes; its exit code and the text."""
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def main() -> int:
    """Run every stage; 0 where all passed, 1 where one failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    summary, failed = [], False
    for name, command in stages():
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        code, text = run(command)
        if code and {"--nbval", "--nbval-lax"} & {*command} and any(sign in text for sign in DIED):
            print("== a kernel died before it replied: once more", flush=True)
            code, _ = run(command)
        failed |= code != 0
        summary.append(f"{'ok    ' if code == 0 else 'FAILED'} {name} ({time.monotonic() - started:.0f} s)")
    print("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
