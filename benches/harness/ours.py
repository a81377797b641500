"""evercred: keeper and courier, pinned to one core."""
import json
import os
import signal
import time

from .machine import BINARIES, CREDMON_CORE, Failed, pinned, stop
from .spool import fresh_use
from .watch import Watch

SERVICE = "grid"


class Ours:
    name = "evercred"
    service = SERVICE

    def __init__(self, directory, home, issuer, in_flight=64):
        self.directory, self.issuer = directory, issuer
        self.log, self.socket = home + "/log", home + "/status.sock"
        self.config = home + "/evercred.toml"
        with open(self.config, "w") as f:
            f.write(f"""[daemon]
credential_directory = "{directory}"
courier_user = "daemon"
status_socket = "{self.socket}"

[provider.{SERVICE}]
kind = "oauth2"
issuer = "{issuer.url}"
client_id = "bench"
scopes = ["storage.read:/"]
ca_file = "{issuer.ca}"
max_in_flight = {in_flight}
max_per_second = 100000
""")
        self.process = None

    def start(self, patience=120):
        """Start; the seconds until CREDMON_COMPLETE."""
        watch = Watch(self.directory)
        begin = time.monotonic()
        self.process = pinned(CREDMON_CORE, [BINARIES + "/condor_credmon_evercred", "--config", self.config, "--log", self.log])
        end = watch.wait("CREDMON_COMPLETE", patience)
        watch.close()
        if end is None:
            raise Failed(f"evercred did not start: {self.tail()}")
        return end - begin

    def tail(self):
        with open(self.log) as f:
            return f.read()[-2000:]

    def stop(self):
        if self.process:
            stop(self.process)

    def hang_up(self):
        os.kill(self.process.pid, signal.SIGHUP)

    def freeze(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def top(self, _user, token):
        return json.dumps({"refresh_token": token})

    def due_use(self):
        return None

    def meta(self):
        return None

    def fresh_use(self):
        return fresh_use("x" * 600)
