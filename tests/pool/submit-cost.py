#!/usr/bin/env python3
"""What the storer adds to a submit with a good credential (benchmark B10). Runs inside of the lab as a user who has one.

submit-cost.py [SERVICE [ROUNDS]]

Alternates, ROUNDS times (default 40): condor_submit with a storer that does nothing (/bin/true), condor_submit with the
configured storer, condor_store_cred query-oauth alone, the storer alone. Prints medians in ms. The jobs are submitted on
hold and removed.
"""
import os, statistics, subprocess, sys, time

service = sys.argv[1] if len(sys.argv) > 1 else "helmholtz"
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 40
storer = subprocess.run(["condor_config_val", "SEC_CREDENTIAL_STORER"], capture_output=True, text=True, check=True).stdout.strip()
submit = ["condor_submit", "/dev/null", "-a", "executable=/bin/true", "-a", "hold=true",
          "-a", f"use_oauth_services={service}", "-a", "queue"]
nothing = {**os.environ, "_CONDOR_SEC_CREDENTIAL_STORER": "/bin/true"}
ways = {
    "submit, storer that does nothing": (submit, nothing),
    "submit": (submit, None),
    "condor_store_cred query-oauth": (["condor_store_cred", "query-oauth", "-s", service], None),
    "storer": ([storer, service], None),
}
times = {name: [] for name in ways}
for _ in range(rounds):
    for name, (command, environment) in ways.items():
        start = time.perf_counter()
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True, start_new_session=True)
        times[name].append((time.perf_counter() - start) * 1000)
for name, all_times in times.items():
    print(f"{name:34} {statistics.median(all_times):7.1f} ms  (least {min(all_times):.1f}, {rounds} rounds)")
extra = statistics.median(times["submit"]) - statistics.median(times["submit, storer that does nothing"])
query = statistics.median(times["condor_store_cred query-oauth"])
print(f"the storer adds {extra:.1f} ms to a submit, of which condor_store_cred is {query:.1f} ms: {extra - query:.1f} ms on top")
subprocess.run(["condor_rm", "-all"], capture_output=True, check=False)
