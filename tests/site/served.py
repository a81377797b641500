"""A JSON service on loopback, for the doubles: requests become answer(method, path, raw body, headers), whose (status,
document) becomes the reply; `retry` in the document is sent as Retry-After. None: accepted, and never answered."""
import http.server, json, time


def serve(port, answer, ready=lambda port: None):
    """Serve for ever, and print the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answered = answer(self.command, self.path, raw, self.headers)
            if answered is None:
                # Whoever asked has to give up.
                time.sleep(120)
                self.close_connection = True
                return
            status, document = answered
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if document.get("retry"):
                self.send_header("Retry-After", str(document["retry"]))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = reply

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    ready(server.server_address[1])
    print(server.server_address[1], flush=True)
    server.serve_forever()
