#!/usr/bin/env python3
"""What the storer adds to a submit with a good credential (benchmark B10): submit-cost calls it.

submit-cost.py times SERVICE ROUNDS     inside of the lab, as a user who has a good credential of SERVICE
submit-cost.py count STRACE PROGRAM     what the one that became PROGRAM starts, by `strace -f` of execve, clone and fork

`times` takes turns, ROUNDS times: condor_submit with a storer that does nothing (/bin/true), with HTCondor's own storer
(its Pelican way, which finds the credential stored and does no more), with the configured one; then condor_store_cred
query-oauth, HTCondor's storer and the configured one alone. Medians of the wall time and of user and system CPU time of
each with all its children, in ms. The jobs are submitted on hold and removed.
"""
import os, re, statistics, subprocess, sys, time

STOCK = "/usr/bin/condor_credential_storer"


def run(command, environment):
    quiet = os.open("/dev/null", os.O_RDWR)
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, environment, setsid=True,
                          file_actions=[(os.POSIX_SPAWN_DUP2, quiet, fd) for fd in (0, 1, 2)])
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    os.close(quiet)
    if status:
        sys.exit(f"{command} ends with {status}")
    return wall * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def times(service, rounds):
    value = subprocess.run(["condor_config_val", "SEC_CREDENTIAL_STORER"], capture_output=True, text=True, check=True)
    storer = value.stdout.strip()
    submit = ["condor_submit", "/dev/null", "-a", "executable=/bin/true", "-a", "hold=true",
              "-a", f"use_oauth_services={service}", "-a", "queue"]
    stock_way = {"CONDOR_CREDENTIAL_STORER_MODE": "pelican"}
    ways = {
        "submit, storer that does nothing": (submit, {"_CONDOR_SEC_CREDENTIAL_STORER": "/bin/true"}),
        "submit, evercred_storer": (submit, {}),
        "condor_store_cred query-oauth": (["condor_store_cred", "query-oauth", "-s", service], {}),
        "condor_credential_storer": ([STOCK, service], stock_way),
        "evercred_storer": ([storer, service], {}),
    }
    taken = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (command, more) in ways.items():
            taken[name].append(run(command, {**os.environ, **more}))
    middle = {}
    print(f"{'median of ' + str(rounds):34} {'wall ms':>9} {'least':>9} {'CPU ms':>9} {'least':>9}")
    for name, all_times in taken.items():
        wall, cpu = zip(*all_times)
        middle[name] = statistics.median(wall), statistics.median(cpu)
        print(f"{name:34} {middle[name][0]:9.1f} {min(wall):9.1f} {middle[name][1]:9.1f} {min(cpu):9.1f}")
    for what, one, other in (
        ("evercred_storer adds to a submit", "submit, evercred_storer", "submit, storer that does nothing"),
        ("on top of condor_store_cred", "evercred_storer", "condor_store_cred query-oauth"),
        ("HTCondor's storer, on top of it", "condor_credential_storer", "condor_store_cred query-oauth"),
    ):
        wall, cpu = (a - b for a, b in zip(middle[one], middle[other]))
        print(f"{what:34} {wall:9.1f} {'':9} {cpu:9.1f}")
    subprocess.run(["condor_rm", "-all"], capture_output=True, check=False)


def count(file, program):
    """From its start on nobody else is traced but those who wait for it."""
    started, processes, threads, programs = False, 0, 0, []
    for line in open(file, errors="replace"):
        call = line.partition(" ")[2].strip()
        if executed := re.match(r'execve\("([^"]+)".*(?: = 0|<unfinished \.\.\.>)$', call):
            name = executed[1].rsplit("/", 1)[-1]
            if started:
                programs.append(name)
            started = started or name == program
        elif started and re.match(r"(clone3?|v?fork)\(", call):
            # A call that goes on in another line has its flags here.
            threads += "CLONE_THREAD" in call
            processes += "CLONE_THREAD" not in call
    if not started:
        sys.exit(f"{program} never ran")
    print(f"{program:34} {processes} processes below it, {threads} threads: {' '.join(programs)}")


if sys.argv[1] == "times":
    times(sys.argv[2], int(sys.argv[3]))
else:
    count(sys.argv[2], sys.argv[3])
