"""HTCondor's own Python credmons, from the Debian package, in the root that tests/pool/bootstrap.sh makes."""
import json
import os
import signal
import subprocess
import sys
import time

from .issuer import PORT
from .machine import CREDMON_CORE, Failed, pinned, stop
from .watch import Watch


NAMES = {"vault": "VaultCredmon", "oauth": "OAuthCredmon", "local": "LocalCredmon"}

# Who renews the service; the others of the same program look at the directory too, as in any pool, and find nothing.
KNOBS = {
    "vault": "",
    "oauth": "helmholtz_CLIENT_ID = bench\nOAUTH2_CREDMON_PROVIDER_NAMES = helmholtz\nVAULT_CREDMON_PROVIDER_NAMES = nothing\n",
    # It signs with a key of its own, which its start makes; its default version of a token wants an audience.
    "local": "LOCAL_CREDMON_PROVIDER_NAMES = helmholtz\nLOCAL_CREDMON_PRIVATE_KEY = {home}/private.pem\n"
             "LOCAL_CREDMON_PUBLIC_KEY = {home}/public.pem\nLOCAL_CREDMON_TOKEN_AUDIENCE = https://localhost\n"
             "OAUTH2_CREDMON_PROVIDER_NAMES = nothing\nVAULT_CREDMON_PROVIDER_NAMES = nothing\n",
}


class Stock:
    """kind: vault, oauth or local, all by `condor_credmon_oauth`, which scans when it is signalled and each minute. Local
    asks no issuer: it signs the tokens itself."""

    def __init__(self, kind, root, directory, home, issuer):
        self.kind, self.root, self.directory, self.home, self.issuer = kind, root, directory, home, issuer
        self.name = NAMES[kind]
        self.service = "helmholtz"
        self.process = None
        with open(home + "/condor_config", "w") as f:
            f.write(f"""RELEASE_DIR = /usr
LIBEXEC = /usr/libexec/condor
LOCAL_DIR = {home}
LOG = {home}
SEC_CREDENTIAL_DIRECTORY_OAUTH = {directory}
CREDMON_OAUTH_LOG = {home}/CredMonLog
MAX_CREDMON_OAUTH_LOG = 2 Gb
CREDMON_OAUTH_TOKEN_MINIMUM = 2400
CREDMON_OAUTH_TOKEN_REFRESH = 1200
AUTH_SSL_CLIENT_CAFILE = {issuer.ca}
NETWORK_INTERFACE = 127.0.0.1
""")
            f.write(KNOBS[kind].format(home=home))

    def start(self, patience=120):
        """Start; the seconds until CREDMON_COMPLETE."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CONDOR_CONFIG": self.home + "/condor_config",
               "REQUESTS_CA_BUNDLE": self.issuer.ca, "HOME": "/root", "LANG": "C.UTF-8"}
        watch = Watch(self.directory)
        begin = time.monotonic()
        with open(self.home + "/stderr", "w") as errors:
            self.process = pinned(CREDMON_CORE, ["chroot", self.root, "/usr/sbin/condor_credmon_oauth"], env=env, stderr=errors)
        end = watch.wait("CREDMON_COMPLETE", patience)
        watch.close()
        if end is None:
            raise Failed(f"{self.name} did not start: {self.tail()}")
        return end - begin

    def tail(self):
        return "".join(open(f"{self.home}/{name}").read()[-1500:] for name in ("stderr", "CredMonLog")
                       if os.path.exists(f"{self.home}/{name}"))

    def stop(self):
        if self.process:
            stop(self.process, 3)

    def hang_up(self):
        os.kill(self.process.pid, signal.SIGHUP)

    def scan(self, patience):
        """Signal it; the seconds until it says that its scan is complete."""
        watch = Watch(self.directory)
        begin = time.monotonic()
        self.hang_up()
        end = watch.wait("CREDMON_COMPLETE", patience)
        watch.close()
        if end is None:
            raise Failed(f"{self.name}: no end of the scan: {self.tail()}")
        time.sleep(0.01)
        return end - begin

    def top(self, user, token):
        if self.kind == "vault":
            return json.dumps({"vault_token": token,
                               "vault_url": f"https://localhost:{PORT}/v1/secret/oauth/creds/helmholtz/{user}:default"})
        return json.dumps({"refresh_token": token}) if self.kind == "oauth" else user

    def meta(self):
        """OAuthCredmon renews only what its web page approved, with a `.meta` and a `.use` there before."""
        if self.kind != "oauth":
            return None
        return json.dumps({"client_id": "bench", "client_secret": "s", "token_url": self.issuer.url + "/token",
                           "use_refresh_token": True})

    def due_use(self):
        """A `.use` past its half-life; VaultCredmon needs none, it renews whenever the `.top` is newer."""
        return None if self.kind == "vault" else json.dumps({"access_token": "old", "expires_in": 0})

    def fresh_use(self):
        return "x" * 600 + "\n" if self.kind == "vault" else json.dumps({"access_token": "x" * 600, "expires_in": 86400})


def complete(root):
    """LocalCredmon signs with a library that Debian does not have; without it the program goes on, but without LocalCredmon."""
    where = root + "/usr/lib/python3/dist-packages"
    if not os.path.exists(where + "/scitokens"):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-deps", "--target", where,
                        "scitokens==1.9.7"], check=True)
