"""How long a user waits for `import plait` and `plait --help`, beyond Python's own start.

Each command runs as a process of its own, interleaved; medians.
Targets: import < 1.5 s, help < 1 s.

    .venv/bin/python bench/import.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import plait": [sys.executable, "-c", "import plait"],
    "import plait; plait.HybridLM": [sys.executable, "-c", "import plait; plait.HybridLM"],
    "plait --help": [str(Path(sys.executable).with_name("plait")), "--help"],
}


def measure() -> dict[str, list[float]]:
    """Return wall seconds per command and round, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(ROUNDS + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_number:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    medians = {name: statistics.median(values) for name, values in measure().items()}
    start = medians["python -c pass"]
    for name, value in medians.items():
        print(f"{name:<32} {value:6.3f} s   beyond Python's start {value - start:6.3f} s")
