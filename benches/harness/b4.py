"""B4: what it costs to have nothing to do. Minutes of idleness of all processes are measured and told per hour: processor
time, wake-ups (a thread went to sleep of itself) and system calls, both counted by the kernel's tracepoints. The minutes
are one period of evercred's full scan, and two looks of the stock credmons. What evercred writes once an hour (what it
found, for the next start) it writes at its stop too: the processor time of the stop is added."""
import shutil
import time

from . import spool
from .issuer import Issuer
from .machine import cpu_of_stop, cpu_seconds, wakeups_and_calls
from .ours import Ours
from .report import Row, at_most
from .stock import NAMES, Stock


def idle(place, credmon_of, present, seconds):
    directory = spool.make(place.disk + "/idle")
    with Issuer(place.work) as issuer:
        credmon = credmon_of(directory, issuer)
        spool.populate(directory, present, credmon.service, lambda n: credmon.top("", f"old-{n}"), credmon.fresh_use(), credmon.meta())
        time.sleep(3)  # Of a directory that changed just now, nobody is sure yet.
        try:
            credmon.start()
            time.sleep(10)
            pid = credmon.process.pid
            cpu, begin = cpu_seconds(pid), time.monotonic()
            woken, called = wakeups_and_calls(pid, seconds)
            hour = 3600 / (time.monotonic() - begin)
            found = {"cpu_s": (cpu_seconds(pid) - cpu) * hour, "wakeups": woken and woken * hour, "calls": called and called * hour}
            if credmon.name == "evercred":
                found["stop_cpu_s"] = cpu_of_stop(credmon.process)
                found["cpu_s"] += found["stop_cpu_s"]
            return found
        finally:
            credmon.stop()
            shutil.rmtree(directory, ignore_errors=True)


def rows(place, quick):
    seconds, peers_seconds = (60, 60) if quick else (600, 120)
    for present, most in ((10_000, 0.5),) if quick else ((10_000, 0.5), (100_000, 2)):
        found = idle(place, lambda d, i: Ours(d, place.home("ours"), i), present, seconds)
        kinds = [] if not place.stock else ["vault"] if present > 10_000 else NAMES
        peers = {NAMES[kind]: idle(place, lambda d, i: Stock(kind, place.root, d, place.home(kind), i), present, peers_seconds)
                 for kind in kinds}
        for what, unit, goal, name in (("processor time", "s", most, "cpu_s"), ("wake-ups", "", 120, "wakeups"),
                                       ("system calls", "", 2000, "calls")):
            beside = [(peer, figures[name]) for peer, figures in peers.items() if figures[name] is not None]
            yield Row("B4", f"idle hour, {present:,} credentials: {what}", unit, found[name], at_most(goal), beside,
                      note=f"(from {seconds} s; the others' from {peers_seconds} s)", more={"figures": found, "peers": peers})
