"""A double of two services of computing facilities: NERSC's Superfacility API and the DOE IRI Facility API (contract
replication, 7, 8 and 13). Both work on real files below one directory. A client's assertion is verified with its public
key; every IRI request and answer is held against NERSC's published specification, and what differs is told by /control.

    double.py PORT ROOT CLIENT_FILE IRI.json

    PUT /control takes JSON: fail=[[path part, status, retry-after, times], ...], full, hang (path part: accepted, never
    answered, never done), late (path part: accepted, never answered, done at "release"), hold (what tasks stay pending),
    task_fails, expired, revoke (one time), client (a new client into that file), release. It tells what was asked, what
    was wrong, and what happened to files.
"""
import base64, email, email.policy, json, os, stat, subprocess, sys, threading, time, uuid
import urllib.parse

import jsonschema
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "site"))
import served

PORT, ROOT, CLIENT_FILE, SPECIFICATION = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.load(open(sys.argv[4]))


def text_of(number):
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def bytes_of(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Refusal(Exception):
    """HTTP status, and words."""


class Service:
    def __init__(self):
        self.lock = threading.RLock()
        self.control = {"fail": [], "full": False, "hang": "", "late": "", "hold": [], "task_fails": False,
                        "expired": False, "revoke": False, "iri_refresh": "refresh-1"}
        self.tasks, self.asked, self.tokens, self.seen = {}, {}, set(), set()
        self.wrong, self.late, self.moves = [], [], []
        self.new_client(CLIENT_FILE)

    def new_client(self, path):
        """As a person makes one by hand: a new id, a new key, a file for its owner alone."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private, public = key.private_numbers(), key.public_key().public_numbers()
        numbers = dict(n=public.n, e=public.e, d=private.d, p=private.p, q=private.q, dp=private.dmp1, dq=private.dmq1,
                       qi=private.iqmp)
        self.client, self.public = uuid.uuid4().hex[:13], key.public_key()
        with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"client_id": self.client,
                       "secret": {"kty": "RSA", **{name: text_of(number) for name, number in numbers.items()}}}, file)
        os.rename(path + ".new", path)

    # --- tokens

    def give_token(self):
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": 600, "scope": "urn:all"}

    def sfapi_token(self, form):
        """RFC 7523: whoever signs with the registered key, for us, not too long ago, and not twice."""
        if self.control["expired"]:
            return 401, {"error": "invalid_client", "error_description": "Client expired"}
        try:
            assert form["grant_type"] == "client_credentials"
            assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            signed, signature = form["client_assertion"].rsplit(".", 1)
            header, claims = (json.loads(bytes_of(part)) for part in signed.split("."))
            assert header["alg"] == "RS256" and header["typ"] == "JWT", header
            self.public.verify(bytes_of(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            assert claims["iss"] == claims["sub"] == self.client, "who"
            assert claims["aud"] == f"http://127.0.0.1:{service.port}/c2id/token", claims["aud"]
            assert claims["iat"] - 5 <= time.time() < claims["exp"] <= claims["iat"] + 3600, "when"
            assert claims["jti"] not in self.seen, "twice"
            self.seen.add(claims["jti"])
        except Exception as error:
            return 401, {"error": "invalid_client", "error_description": repr(error)}
        return self.give_token()

    def iri_token(self, form):
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != self.control["iri_refresh"]:
            return 400, {"error": "invalid_grant"}
        return self.give_token() if form.get("client_id") else (400, {"error": "invalid_client"})

    # --- files

    def place(self, path):
        """The real path; nobody leaves the directory."""
        path = os.path.normpath("/" + path.lstrip("/"))
        parent = path if path == ROOT else os.path.realpath(os.path.dirname(path))
        if os.path.commonpath([parent, ROOT]) != ROOT:
            raise PermissionError(13, "Permission denied", path)
        return path

    def put(self, path, content):
        """Neither atomic nor closed to others, as nobody promises it."""
        with open(path, "wb") as file:
            os.chmod(path, 0o644)
            file.write(content[: len(content) // 2])
            file.flush()
            if self.control["full"]:
                raise OSError(28, "No space left on device", path)
            time.sleep(0.05)
            file.write(content[len(content) // 2:])

    @staticmethod
    def words(error):
        return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)

    # --- Superfacility API

    def sfapi(self, method, path, query, body, form):
        if path.startswith("/status/"):
            return 200, {"name": path[8:], "full_name": "a machine", "description": "", "system_type": "compute",
                         "notes": [], "status": "active", "updated_at": "2026-01-01T00:00:00Z"}
        if path.startswith("/tasks/"):
            task = self.tasks.get(path[7:])
            if task is None:
                return 404, {"detail": "no such task"}
            held = "command" in self.control["hold"]
            return 200, {"id": path[7:], "status": "new" if held else task["status"],
                         "result": None if held else task["result"]}
        _, _, what, machine, *rest = path.split("/", 4)
        target = rest[0] if rest else ""
        if what == "command" and method == "POST":
            name = str(uuid.uuid4())
            self.tasks[name] = {"status": "new", "result": None}
            threading.Thread(target=self.run, args=(name, form["executable"])).start()
            return 200, {"task_id": name, "status": "OK", "error": None}
        if not target.startswith("/"):
            return 200, {"status": "ERROR", "error": f"{target}: No such file or directory", "entries": []}
        try:
            target = self.place(target)
            if what == "upload" and method == "PUT":
                self.put(target, body)
                return 200, {"status": "OK", "output": "", "error": None}
            if what == "download":
                return 200, {"status": "OK", "file": open(target).read(), "is_binary": False, "error": None}
            if what == "ls":
                names = [".", "..", *os.listdir(target)] if os.path.isdir(target) else [target]
                return 200, {"status": "OK", "error": None, "entries": [self.entry(target, name) for name in names]}
        except OSError as error:
            return 200, {"status": "ERROR", "error": self.words(error), "output": None, "entries": []}
        return 405, {"detail": "no such call"}

    @staticmethod
    def entry(folder, name):
        found = os.lstat(os.path.join(folder, name))
        return {"perms": stat.filemode(found.st_mode), "hardlinks": found.st_nlink, "user": "u", "group": "g",
                "size": found.st_size, "date": "2026-01-01T00:00:00", "name": name}

    def run(self, name, command):
        if self.control["task_fails"]:
            ended = {"status": "error", "output": "", "error": "ssh: connect to host: Connection refused"}
        else:
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, cwd="/")
            ended = {"status": "ok", "output": done.stdout, "error": done.stderr or None, "exit_code": done.returncode}
        with self.lock:
            self.tasks[name] = {"status": "completed", "result": json.dumps(ended)}

    # --- IRI

    def against(self, method, path, query, body):
        """The operation of the specification, with the request held against it."""
        for template, operations in SPECIFICATION["paths"].items():
            parts, given = template.split("/"), path.split("/")
            same = len(parts) == len(given) and all(p == g or p.startswith("{") and g for p, g in zip(parts, given))
            if same and method.lower() in operations:
                operation = operations[method.lower()]
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "query" and parameter.get("required") and parameter["name"] not in query:
                        raise Refusal(422, f"{template}: no {parameter['name']}")
                content = operation.get("requestBody", {}).get("content", {})
                if "application/json" in content:
                    self.validate(content["application/json"]["schema"], body)
                elif "multipart/form-data" in content and not isinstance(body, bytes):
                    raise Refusal(422, f"{template}: no form")
                return operation
        raise Refusal(404, f"the specification has no {method} {path}")

    @staticmethod
    def validate(schema, value):
        try:
            jsonschema.validate(value, {**schema, "components": SPECIFICATION["components"]})
        except jsonschema.ValidationError as error:
            raise Refusal(422, error.message)

    def iri(self, method, path, query, body):
        try:
            operation = self.against(method, path, query, body)
            status, answer = self.iri_answer(method, path, query, body)
            declared = operation["responses"].get(str(status), {}).get("content", {}).get("application/json")
            if declared is None:
                raise Refusal(500, f"{path}: the specification has no answer {status}")
            self.validate(declared["schema"], answer)
            return status, answer
        except Refusal as refusal:
            status, words = refusal.args
            self.wrong.append(words)
            return status, {"type": "about:blank", "status": status, "title": "Refused", "detail": words,
                            "instance": path}

    def iri_answer(self, method, path, query, body):
        _, _, _, area, *rest = path.split("/")
        if area == "task":
            task = self.tasks.get(rest[0])
            if task is None:
                return 404, {"type": "about:blank", "status": 404, "title": "no such task", "instance": path}
            self.work_all()
            return 200, {"id": rest[0], "status": task["status"], "result": task["result"]}
        name = str(uuid.uuid4())
        arguments = {**query, **(body if isinstance(body, dict) else {})}
        self.tasks[name] = {"status": "pending", "result": None, "what": rest[0], "arguments": arguments,
                            "content": body if isinstance(body, bytes) else None}
        created = 201 if rest[0] in ("mkdir", "mv") else 200
        return created, {"task_id": name, "task_uri": f"http://127.0.0.1/api/v1/task/{name}"}

    def work_all(self):
        """In the order in which they were asked for."""
        for task in self.tasks.values():
            if task["status"] == "pending" and task["what"] not in self.control["hold"]:
                self.work(task)

    def work(self, task):
        what, given = task["what"], task["arguments"]
        try:
            if self.control["task_fails"]:
                raise OSError(5, "Input/output error", given["path"])
            path = self.place(given["path"])
            if what == "upload":
                self.put(path, task["content"])
            elif what == "chmod":
                os.chmod(path, int(given["mode"], 8))
            elif what == "mkdir":
                os.makedirs(path, exist_ok=bool(given.get("parent")))
            elif what == "mv":
                target = self.place(given["target_path"])
                os.rename(path, target)
                self.moves.append([os.path.basename(path), open(target).read()[:12]])
            elif what == "rm":
                os.unlink(path)
            else:
                raise OSError(22, "Invalid argument", what)
            task.update(status="completed", result={"output": ""})
        except OSError as error:
            task.update(status="failed", result=self.words(error))

    # --- both

    def answer(self, method, target, body, form, authorization):
        path, _, query = target.partition("?")
        path, query = urllib.parse.unquote(path), dict(urllib.parse.parse_qsl(query))
        if path == "/control":
            for order, value in (body or {}).items():
                if order == "client":
                    self.new_client(value)
                elif order == "release":
                    self.control["late"] = ""
                    for request in self.late:
                        self.done(*request)
                    self.late = []
                    self.work_all()
                else:
                    self.control[order] = value
            return 200, {"asked": self.asked, "wrong": self.wrong, "moves": self.moves, "late": len(self.late),
                         "held": [os.path.basename(request[3]["path"]) for request in self.late if isinstance(request[3], dict)],
                         "tasks": len(self.tasks)}
        if path == "/c2id/token":
            self.count(method, path)
            return self.sfapi_token(form)
        if path == "/v2/oauth2/token":
            self.count(method, path)
            return self.iri_token(form)
        return self.checked(method, path, query, body, form, authorization)

    def count(self, method, path):
        self.asked[f"{method} {path}"] = self.asked.get(f"{method} {path}", 0) + 1

    def checked(self, method, path, query, body, form, authorization):
        self.count(method, path)
        for rule in self.control["fail"]:
            if rule[0] in path and rule[3] > 0:
                rule[3] -= 1
                return rule[1], {"detail": "as ordered", "retry": rule[2]}
        if self.control["revoke"]:
            self.control["revoke"] = False
            self.tokens.clear()
        public = path.startswith("/api/v1.2/status/")
        if not public and authorization.removeprefix("Bearer ") not in self.tokens:
            return 401, {"detail": "no such token"}
        if self.control["hang"] and self.control["hang"] in path:
            return None
        if self.control["late"] and self.control["late"] in path:
            self.late.append((method, path, query, body, form))
            return None
        return self.done(method, path, query, body, form)

    def done(self, method, path, query, body, form):
        if path.startswith("/api/v1.2/"):
            return self.sfapi(method, path[len("/api/v1.2"):], query, body, form)
        return self.iri(method, path, query, body)


service = Service()


def answer(method, path, raw, headers):
    kind = headers.get("Content-Type") or ""
    body, form = None, {}
    if kind.startswith("multipart/form-data"):
        message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw, policy=email.policy.HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        body = parts["file"].get_payload(decode=True)
    elif kind.startswith("application/x-www-form-urlencoded"):
        form = dict(urllib.parse.parse_qsl(raw.decode()))
    elif raw:
        body = json.loads(raw)
    with service.lock:
        return service.answer(method, path, body, form, headers.get("Authorization") or "")


if __name__ == "__main__":
    served.serve(PORT, answer, lambda port: setattr(service, "port", port))
