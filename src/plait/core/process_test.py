import os
import subprocess
import sys

import pytest

# Four blocks of 8 MB are taken and freed ten times in a thread that is not the main one.
CHURN = """
import resource, threading
from plait.core.process import set_library_defaults

def churn(turns):
    for _ in range(turns):
        [b"x" * 8_000_000 for _ in range(4)]

def num_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def measure():
    churn(2)
    before = num_faults()
    churn(10)
    print(num_faults() - before)

set_library_defaults()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's malloc")
def test_a_thread_keeps_the_memory_that_it_will_take_again_unless_told_otherwise():
    def faults(**environment: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", CHURN],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | environment,
        )
        return int(done.stdout)

    pages = 10 * 4 * 8_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert faults() < 0.01 * pages
    assert faults(MALLOC_TRIM_THRESHOLD_="1000000") > 0.5 * pages
