"""Passes requests on to a real registry, except for those that the fault refuses.

usage: faulty_registry.py REGISTRY FAULT; prints its port. Faults, as registries and proxies in front of them answer:
  no-repository   an upload begins with 404 NAME_UNKNOWN, as where repositories must be created first
  too-large       a proxy takes no upload of more than 100 KB: 413
  immutable       manifests are refused: 400 TAG_INVALID
  denied          manifests are refused: 403 DENIED, the login may not push
  lacks-layer     the first manifest is refused: 400 MANIFEST_BLOB_UNKNOWN, another build was sending its layer
  broken          manifests are answered with 500
  expired-login   the first manifest is refused: 403 DENIED, the token has expired
"""

import http.client
import http.server
import json
import sys

REGISTRY, FAULT = sys.argv[1], sys.argv[2]
ANSWERS = {
    "no-repository": (404, "NAME_UNKNOWN", "The repository does not exist in the registry"),
    "too-large": (413, "SIZE_INVALID", "request entity too large"),
    "immutable": (400, "TAG_INVALID", "The image tag already exists and is immutable"),
    "denied": (403, "DENIED", "requested access to the resource is denied"),
    "lacks-layer": (400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry"),
    "broken": (500, "UNKNOWN", "unknown error"),
    "expired-login": (403, "DENIED", "Your authorization token has expired"),
}
refused = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        # Clients try TLS first, and go on without it where the answer looks like HTTP.
        if self.rfile.peek(1)[:1] == b"\x16":
            self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.close_connection = True
        else:
            super().handle_one_request()

    def is_refused(self, length):
        manifest = self.command == "PUT" and "/manifests/" in self.path
        return {
            "no-repository": self.command == "POST",
            "too-large": self.command in ("PUT", "PATCH") and length > 100_000,
            "immutable": manifest,
            "denied": manifest,
            "broken": manifest,
            "lacks-layer": manifest and refused == 0,
            "expired-login": manifest and refused == 0,
        }[FAULT]

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self):
        global refused
        body = self.body()
        if self.is_refused(len(body)):
            refused += 1
            status, code, message = ANSWERS[FAULT]
            content = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
            headers = [("Content-Type", "application/json")]
        else:
            upstream = http.client.HTTPConnection(REGISTRY)
            hop = ("host", "transfer-encoding", "connection", "content-length")
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name == "Host" or name.lower() not in hop:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            content, status = response.read(), response.status
            headers = [(k, v) for k, v in response.getheaders() if k.lower() not in hop]
            if self.command == "HEAD":
                headers.append(("Content-Length", response.getheader("Content-Length", "0")))
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
