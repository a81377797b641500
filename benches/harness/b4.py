"""B4: what it costs to have nothing to do. Minutes of idleness are measured and told per hour: processor time, wake-ups
(voluntary context switches), system calls (counted by the kernel's tracepoint, so that nothing is slowed down)."""
import os
import shutil
import subprocess
import time

from . import spool
from .issuer import Issuer
from .machine import cpu_seconds, family, wakeups
from .ours import Ours
from .report import Row
from .stock import Stock


def calls(pid, seconds):
    """System calls of all processes, counted by perf; None where the kernel does not let us."""
    pids = ",".join(str(one) for one in family(pid))
    counted = subprocess.run(["perf", "stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-p", pids, "--", "sleep", str(seconds)],
                             capture_output=True, text=True)
    for line in counted.stderr.splitlines():
        if "sys_enter" in line and line.split(";")[0].isdigit():
            return int(line.split(";")[0])
    time.sleep(seconds if counted.returncode else 0)
    return None


def idle(place, credmon_of, present, seconds):
    directory = spool.make(place.disk + "/idle")
    with Issuer(place.work) as issuer:
        credmon = credmon_of(directory, issuer)
        spool.populate(directory, present, credmon.service, lambda n: credmon.top("", f"old-{n}"), credmon.fresh_use())
        try:
            credmon.start()
            time.sleep(10)
            pid = credmon.process.pid
            cpu, woken, begin = cpu_seconds(pid), wakeups(pid), time.monotonic()
            counted = calls(pid, seconds)
            hour = 3600 / (time.monotonic() - begin)
            return {"cpu_s": (cpu_seconds(pid) - cpu) * hour, "wakeups": (wakeups(pid) - woken) * hour,
                    "calls": counted * hour if counted is not None else None}
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def rows(place, quick):
    # A whole period of the full scan, so that its share is in it.
    seconds = 60 if quick else 620
    for present, most in ((10_000, 0.5),) if quick else ((10_000, 0.5), (100_000, 2)):
        found = idle(place, lambda d, i: Ours(d, place.home("ours"), i), present, seconds)
        peer = None
        if place.stock and present == 10_000:
            peer = idle(place, lambda d, i: Stock("vault", place.root, d, place.home("vault"), i), present, 130)
        for what, unit, goal, name in ((f"processor time", "s", most, "cpu_s"), ("wake-ups", "", 120, "wakeups"),
                                       ("system calls", "", 2000, "calls")):
            value = found[name]
            beside = [("VaultCredmon", peer[name])] if peer and peer[name] is not None else []
            yield Row("B4", f"idle hour, {present:,} credentials: {what}", unit, value, f"≤ {goal:,}",
                      value <= goal if value is not None else None, beside,
                      note=f"(measured over {seconds} s)", more={"figures": found, "peer": peer})
