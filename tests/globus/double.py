"""A double of the Globus Compute service (contract replication, 3 and 13). Tasks are run by the real worker code,
globus_compute_endpoint.engines.helper.execute_task, in a process of its own.

    double.py PORT        PUT /control takes JSON: fail=[[path part, status, retry-after, times, body?], ...], hold, lose,
                          offline, deny, revoke (one time), deaf (submits are taken, and answered with 503), release
                          (what was lost is run after all), forget (all functions, one time),
                          unknown=[endpoint, ...]. GET /control tells what was asked, and what became of these.
"""
import inspect, json, multiprocessing, os, sys, tempfile, threading, time, uuid

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "site"))
import served


def run(task_id, function_code, payload, serializers, queue):
    os.environ.setdefault("HOME", tempfile.gettempdir())
    from globus_compute_common import messagepack
    from globus_compute_common.messagepack.message_types import Task
    from globus_compute_endpoint.engines import helper
    body = messagepack.pack(Task(task_id=task_id, task_buffer=function_code + payload))
    known = inspect.signature(helper.execute_task).parameters
    offered = dict(task_id=task_id, task_body=body, endpoint_id=uuid.uuid4(), run_dir=tempfile.mkdtemp(),
                   result_serializers=serializers)
    given = {name: value for name, value in offered.items() if name in known}
    queue.put(helper.execute_task(**given))


class Service:
    def __init__(self):
        self.lock = threading.Lock()
        self.control = {"fail": [], "hold": False, "lose": False, "offline": False, "deny": False, "revoke": False}
        self.control["deaf"], self.control["unknown"] = False, []
        self.functions, self.tasks, self.asked, self.tokens = {}, {}, {}, set()
        self.lost, self.released = [], []

    def execute(self, task):
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=run, args=(*task["run"], queue))
        worker.start()
        packed = queue.get(timeout=120)
        worker.join()
        from globus_compute_common import messagepack
        message = messagepack.unpack(packed)
        error = getattr(message, "error_details", None)
        document = {"task_id": task["id"], "completion_t": str(time.time()), "status": "failed" if error else "success"}
        document["exception" if error else "result"] = message.data
        task["document"] = document

    def submit(self, endpoint, body):
        if endpoint in self.control["unknown"]:
            return 404, {"code": "ENDPOINT_NOT_FOUND", "reason": "Endpoint %s could not be resolved" % endpoint}
        tasks = {}
        for function, payloads in body["tasks"].items():
            if function not in self.functions:
                return 404, {"code": "FUNCTION_NOT_FOUND", "reason": "Function %s could not be resolved" % function}
            for payload in payloads:
                task = {"id": str(uuid.uuid4()), "document": None, "started": False}
                task["run"] = (uuid.UUID(task["id"]), self.functions[function], payload, body.get("result_serializers"))
                tasks.setdefault(function, []).append(task["id"])
                if self.control["lose"]:
                    self.lost.append(task)
                else:
                    self.tasks[task["id"]] = task
        return 200, {"request_id": str(uuid.uuid4()), "task_group_id": str(uuid.uuid4()), "endpoint_id": endpoint,
                     "tasks": tasks}

    def status(self, task_id):
        task = self.tasks.get(task_id)
        if task is None:
            return None
        away = self.control["hold"] or self.control["offline"]
        if not task["started"] and not away:
            task["started"] = True
            threading.Thread(target=self.execute, args=(task,)).start()
        return task["document"] or {"task_id": task_id, "status": "waiting-for-ep"}

    def answer(self, method, path, body, authorization):
        self.asked[path] = self.asked.get(path, 0) + 1
        if path == "/control":
            if method == "PUT":
                self.control.update(body)
            if self.control.pop("forget", False):
                self.functions = {}
            if self.control.pop("release", False):
                for task in self.lost:
                    self.execute(task)
                    self.released.append(task["document"].get("result") or task["document"].get("exception"))
                self.lost = []
            return 200, {"asked": self.asked, "tasks": len(self.tasks), "released": self.released}
        for rule in self.control["fail"]:
            if rule[0] in path and rule[3] > 0:
                rule[3] -= 1
                return rule[1], rule[4] if len(rule) > 4 else {"reason": "as ordered", "retry": rule[2]}
        if path == "/v2/oauth2/token":
            token = uuid.uuid4().hex
            self.tokens.add(token)
            return 200, {"access_token": token, "scope": "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all", "expires_in": 172800, "token_type": "Bearer",
                         "resource_server": "funcx_service", "other_tokens": []}
        if path.startswith("/v2/version"):
            return 200, {"api": "1.0", "min_sdk_version": "2.0.0", "min_ep_version": "2.0.0"}
        if self.control["revoke"]:
            self.control["revoke"] = False
            self.tokens.clear()
        if authorization.removeprefix("Bearer ") not in self.tokens:
            return 401, {"reason": "no such token", "code": 401}
        if path in ("/v3/functions", "/v2/functions"):
            function = str(uuid.uuid4())
            self.functions[function] = body["function_code"]
            return 200, {"function_uuid": function}
        if path.endswith("/submit") or path == "/v2/submit":
            if self.control["deny"]:
                return 403, {"code": "FUNCTION_NOT_PERMITTED", "reason": "Function x not permitted on endpoint y"}
            taken = self.submit(path.split("/")[3], body)
            if self.control["deaf"]:
                for task in list(self.tasks):
                    self.status(task)
                return 503, {"reason": "the reply was lost"}
            return taken
        if path == "/v2/batch_status":
            found = {task: self.status(task) for task in body["task_ids"]}
            return 200, {"response": "batch", "results": {k: v for k, v in found.items() if v}}
        if path.startswith("/v2/tasks/"):
            found = self.status(path.rsplit("/", 1)[1])
            return (200, found) if found else (404, {"reason": "no such task"})
        if path.startswith("/v2/endpoints/"):
            return 200, {"status": "offline" if self.control["offline"] else "online", "details": {}}
        return 404, {"reason": "no such path: " + path}


service = Service()


def answer(method, path, raw, headers):
    is_json = (headers.get("Content-Type") or "").startswith("application/json")
    body = json.loads(raw) if raw and is_json else {}
    with service.lock:
        return service.answer(method, path.split("?")[0], body, headers.get("Authorization") or "")


if __name__ == "__main__":
    served.serve(int(sys.argv[1]), answer)
