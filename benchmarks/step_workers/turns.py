"""Turns of a worker of `benchmarks/step.py`: it does a step when a line comes in, and answers with a line."""

import json
import resource
import sys
import time

MARK = "step-benchmark "


class Turns:
    """Measures what this process computes between `begin` and `end`."""

    def __init__(self) -> None:
        """Start without measurements."""
        self._start = 0.0
        self.phases: dict[str, float] = {}
        """CPU seconds of parts of the step under way."""

    def begin(self) -> bool:
        """Wait for the next turn; False if there is none."""
        if sys.stdin.readline().strip() != "step":
            return False
        self.phases = {}
        self._start = time.process_time()
        return True

    def end(self, **facts: object) -> None:
        """Answer with the turn's CPU seconds, the process's peak memory so far, and `facts`."""
        seconds = time.process_time() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.say(cpu_seconds=seconds, peak_gib=peak, phases=self.phases, **facts)

    def say(self, **facts: object) -> None:
        """Send a line to the driver."""
        print(MARK + json.dumps(facts), flush=True)
