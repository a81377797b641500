"""The one issuer that everybody asks: `evercred issuer` over TLS on a core of its own."""
import http.client
import json
import os
import ssl
import subprocess

from .machine import BINARIES, ISSUER_CORE, cpu_seconds, pinned, stop

PORT = 8200  # The stock Vault credmon accepts no other.


def certificates(directory):
    """A CA and a certificate for localhost, made for this run."""
    ca, key, crt = (os.path.join(directory, name) for name in ("ca.pem", "key.pem", "crt.pem"))
    if not os.path.exists(crt):
        def openssl(*args):
            subprocess.run(["openssl", *args], check=True, capture_output=True)
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *new, "-days", "2", "-subj", "/CN=bench CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout", directory + "/ca.key", "-out", ca)
        openssl("req", *new, "-subj", "/CN=localhost", "-keyout", key, "-out", directory + "/csr.pem")
        with open(directory + "/ext", "w") as f:
            f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
                    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
        openssl("x509", "-req", "-in", directory + "/csr.pem", "-CA", ca, "-CAkey", directory + "/ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", directory + "/ext", "-out", crt)
        os.chmod(ca, 0o644)
    return ca, crt, key


class Issuer:
    def __init__(self, work, lifetime=3600, rotation="none"):
        self.ca, crt, key = certificates(work)
        self.url = f"https://localhost:{PORT}"
        self.process = pinned(
            ISSUER_CORE,
            [BINARIES + "/evercred", "issuer", "--listen", f"127.0.0.1:{PORT}", "--tls", crt, key,
             "--lifetime", str(lifetime), "--rotation", rotation],
            stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        # One connection for all that we ask ourselves, so that the others can be counted.
        self.control = http.client.HTTPSConnection("localhost", PORT, context=ssl.create_default_context(cafile=self.ca))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process)

    def ask(self, what, body=None):
        data = None if body is None else json.dumps(body)
        self.control.request("GET" if data is None else "POST", "/control/" + what, data, {"content-type": "application/json"})
        text = self.control.getresponse().read()
        return json.loads(text) if text else None

    def tokens(self, count, prefix="user"):
        """Refresh tokens of the users PREFIX0, PREFIX1, …"""
        wish = {"user": prefix, "scope": "storage.read:/ offline_access", "count": count}
        return self.ask("refresh-token", wish)["refresh_tokens"]

    def latency(self, ms):
        self.ask("latency", {"ms": ms})

    def stats(self):
        """Counters; connections are those of others."""
        stats = self.ask("stats")
        return stats | {name: stats[name] - 1 for name in ("connections", "peak_open")}

    def cpu(self):
        return cpu_seconds(self.process.pid)
