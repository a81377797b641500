"""Processes on cores of their own, and what the kernel says they cost."""
import json
import os
import platform
import subprocess
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BINARIES = os.path.join(HERE, "..", "target", "release")
CREDMON_CORE, ISSUER_CORE = 0, 1


class Failed(Exception):
    """A scenario cannot be measured; the run goes on with the next one."""


def pinned(core, command, **how):
    """Start a command that keeps to one core, and its children too."""
    return subprocess.Popen(["taskset", "-c", str(core), *command], **how)


def stop(process, patience=10.0):
    """End a process that we started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def family(pid):
    """A process and all that came from it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as f:
                    todo += [int(child) for child in f.read().split()]
        except OSError:
            pass
    return found


def cpu_seconds(pid):
    total = 0
    for one in family(pid):
        for task in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{task}/schedstat") as f:
                total += int(f.read().split()[0])
    return total / 1e9


def wakeups(pid):
    """How often a thread went to sleep of itself: each is one wake-up."""
    total = 0
    for one in family(pid):
        for task in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{task}/status") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("voluntary_ctxt_switches"))
    return total


def memory_mib(pid):
    """Resident and proportional memory of all processes."""
    total = {"Rss:": 0, "Pss:": 0}
    for one in family(pid):
        with open(f"/proc/{one}/smaps_rollup") as f:
            for line in f:
                word = line.split()
                if word[0] in total:
                    total[word[0]] += int(word[1])
    return total["Rss:"] / 1024, total["Pss:"] / 1024


def raw(*args, core=None):
    """Ask benches/raw.rs for a limit of this machine."""
    command = [os.path.join(BINARIES, "examples", "raw"), *[str(a) for a in args]]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def facts(disk):
    """What an absolute figure depends on."""
    model = "unknown"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
    kind = subprocess.run(["stat", "-f", "-c", "%T", disk], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": kind,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def load():
    return os.getloadavg()[0]
