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


def cpu_of_stop(process):
    """End a process that we started; the processor time that it and its children took for that."""
    before = cpu_seconds(process.pid)
    process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # What children that ended earlier took is in it, too.
    return usage.ru_utime + usage.ru_stime - before


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
    """By each process's own clock: the threads that have ended are in it, as they are not in what `task` tells."""
    return sum(time.clock_gettime(~one << 3 | 2) for one in family(pid))


def wakeups_and_calls(pid, seconds):
    """How often a thread of any of the processes went to sleep of itself (each is one wake-up), and their system calls,
    counted by the kernel's tracepoints for so long; none where perf may not count."""
    pids = ",".join(str(one) for one in family(pid))
    events = ["-e", "sched:sched_switch", "--filter", "prev_state & 255", "-e", "raw_syscalls:sys_enter"]
    counted = subprocess.run(["perf", "stat", "-x", ";", *events, "-p", pids, "--", "sleep", str(seconds)], capture_output=True, text=True)
    found = [line.split(";")[0] for line in counted.stderr.splitlines() if "sched_switch" in line or "sys_enter" in line]
    # So perf says of what did not run once.
    found = ["0" if one == "<not counted>" else one for one in found]
    if len(found) != 2 or not all(one.isdigit() for one in found):
        time.sleep(seconds if counted.returncode else 0)
        return None, None
    return int(found[0]), int(found[1])


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
    kind = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", disk], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "file_system": kind,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def load():
    return os.getloadavg()[0]
