#!/usr/bin/env python3
"""Run a command on a terminal of its own, as a user would see it, and act when something appears on it.

on_terminal.py [--size COLSxROWS] [--as USER] [--when TEXT ACTION]... [--seconds N] -- CMD ARG...

ACTION: `approve`, `decline` (over HTTP from inside of the lab named by LAB, as USER), `run:COMMAND` (with ACT_URL and
ACT_CODE in the environment), `type:WORD`, `save:FILE` (what was written so far), `sleep:SECONDS`, `ctrl-c`. The first
three answer a page of the storer's: the first one that no action has answered, once it is shown whole, since a terminal
hands over what is written in pieces. Before that every process is searched for the URL's secret part. The transcript
goes to standard output as it is; the exit status is the command's (128 + signal).
"""
import argparse, fcntl, os, pty, re, select, signal, struct, subprocess, sys, termios, time

ap = argparse.ArgumentParser()
ap.add_argument("--size", default="80x40")
ap.add_argument("--when", nargs=2, action="append", default=[])
ap.add_argument("--as", dest="user", default="pool")
ap.add_argument("--seconds", type=float, default=60)
ap.add_argument("command", nargs=argparse.REMAINDER)
args = ap.parse_args()
command = args.command[1:] if args.command[:1] == ["--"] else args.command
columns, rows = map(int, args.size.split("x"))

pid, master = pty.fork()
if pid == 0:
    os.environ.setdefault("TERM", "xterm-256color")
    os.execvp(command[0], command)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

seen, waiting, end, answered = b"", list(args.when), time.monotonic() + args.seconds, 0


def pages():
    """URL and code of each page that was shown whole, in their order: both come before this line."""
    text = re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", seen).decode(errors="replace")
    shown = []
    for part in text.split("Starting polling")[:-1]:
        urls = re.findall(r"^(https?://\S+)\r*$", part, re.M)
        codes = re.findall(r"^([A-Z0-9]{4}-[A-Z0-9]{4})\s*$", part, re.M)
        shown += [(url, codes[-1] if codes else "") for url in urls[-1:]]
    return shown


def answers(action):
    return action in ("approve", "decline") or action.startswith("run:")


def act(action):
    global answered
    if action.startswith("type:"):
        os.write(master, action[5:].encode() + b"\n")
    elif action.startswith("save:"):
        with open(action[5:], "wb") as file:
            file.write(seen)
    elif action == "ctrl-c":
        os.write(master, b"\x03")
    elif action.startswith("sleep:"):
        time.sleep(float(action[6:]))
    elif answers(action):
        url, code = pages()[answered]
        answered += 1
        secret = (code or url.rsplit("/", 1)[-1]).encode()
        for process in filter(str.isdigit, os.listdir("/proc")):
            for what in ("cmdline", "environ"):
                try:
                    found = secret in open(f"/proc/{process}/{what}", "rb").read()
                except OSError:  # it ended meanwhile
                    continue
                if found:
                    print(f"on_terminal: leak {what} of {process}")
        if action.startswith("run:"):
            subprocess.run(["bash", "-c", action[4:]], env={**os.environ, "ACT_URL": url, "ACT_CODE": code}, check=True)
            return
        here = os.path.dirname(os.path.abspath(__file__))
        lab = os.environ.get("LAB")
        browser = [here + "/exec.sh", lab, "/lab/approve.py"] if lab else [here + "/approve.py"]
        subprocess.run(browser + [args.user, action], input=f"{url}\n{code}\n".encode(), check=True, stdout=subprocess.DEVNULL)


while True:
    if time.monotonic() > end:
        os.kill(pid, signal.SIGKILL)
        sys.stdout.buffer.write(seen + b"\n[on_terminal: time is up]\n")
        sys.exit(124)
    if select.select([master], [], [], 0.1)[0]:
        try:
            part = os.read(master, 65536)
        except OSError:
            part = b""
        if not part:
            break
        seen += part
    if waiting and waiting[0][0].encode() in seen and (not answers(waiting[0][1]) or len(pages()) > answered):
        act(waiting.pop(0)[1])
status = os.waitpid(pid, 0)[1]
sys.stdout.buffer.write(seen.replace(b"\r\n", b"\n"))
sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
