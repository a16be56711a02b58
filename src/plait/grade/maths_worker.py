"""One worker of `plait.grade.maths`: a JSON request per line in, a verdict per line out.

Kept apart from the parent because math-verify may hang or take all memory: the parent kills, and
the limit here turns a monster number into an error.
"""

import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer requests until stdin closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Replies go to the pipe alone: what a library prints must not be taken for one.
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    replies.write("ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        # No handler, so the kernel ends this process even inside sympy, parent or no parent.
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + 1)
        verdict = _verdict(parse, verify, request["reference"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(verdict + "\n")


# math-verify's own timeouts are off: they are Python's signal handlers, which cannot stop sympy.
def _verdict(parse, verify, reference: str, answer: str) -> str:
    expected = parse(reference, parsing_timeout=None)
    if not expected:
        return "bad reference"
    found = parse(answer, parsing_timeout=None)
    if not found:
        return "no answer"
    return "equal" if verify(expected, found, timeout_seconds=None) else "different"


if __name__ == "__main__":
    main()
