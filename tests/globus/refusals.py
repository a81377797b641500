"""Tasks for the real worker code (globus_compute_endpoint.engines.helper.execute_task), one after the other; each answer
is decoded by the real SDK. Input: {"code": packed function, "payloads": [packed arguments, ...]}; output: a list of
{"packed": what the service would hand out, "decoded": by the SDK}, or {"exception": text}."""
import json, multiprocessing, os, sys, uuid

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import double


def all_of(code, payloads, queue):
    from globus_compute_common import messagepack
    from globus_compute_sdk.serialize import ComputeSerializer
    answers = []
    for payload in payloads:
        one = Box()
        double.run(uuid.uuid4(), code, payload, ["globus_compute_sdk.serialize.JSONData"], one)
        message = messagepack.unpack(one.value)
        if getattr(message, "error_details", None):
            answers.append({"exception": message.data})
        else:
            answers.append({"packed": message.data, "decoded": ComputeSerializer().deserialize(message.data)})
    queue.put(answers)


class Box:
    def put(self, value):
        self.value = value


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    # The worker wants a process of its own, which was spawned.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=all_of, args=(asked["code"], asked["payloads"], queue))
    worker.start()
    answers = queue.get(timeout=300)
    worker.join()
    json.dump(answers, sys.stdout)
