"""Serves the repositories below a folder with git's own http-backend, on loopback unless ADDRESS says otherwise.

    TOKEN=… [ADDRESS=…] [CERTIFICATE=FILE] git_http.py FOLDER

The port is the only line on standard output; every request is one line on standard error:
`METHOD host path auth`. First path segments with a meaning:

    /open/…     serves FOLDER/…
    /private/…  the same, for whoever knows TOKEN
    /away/…     redirects to /private/… under another host name
    /to/HOST:PORT/…  redirects to http://HOST:PORT/…
    /private-to/HOST:PORT/…  the same, for whoever knows TOKEN
    /hang/…     never answers
    /status/N/… answers with the status N

A repository's Git LFS objects are served from its own folder, as `git lfs` stores them there. The file LFS_ANSWER in
FOLDER, if there is one, is the answer for each object.
"""

import base64
import http.server
import json
import os
import ssl
import subprocess
import sys
import time

FOLDER, TOKEN = sys.argv[1], os.environ["TOKEN"]
CERTIFICATE = os.environ.get("CERTIFICATE")
SCHEME = "https" if CERTIFICATE else "http"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it the second part of an answer waits 40 ms for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_GET(self):
        self.serve()

    def do_POST(self):
        self.serve()

    def serve(self):
        auth = self.headers.get("Authorization", "")
        print(self.command, self.headers["Host"], self.path, auth or "-", file=sys.stderr, flush=True)
        body = self.body()
        _, area, rest = self.path.split("/", 2)
        if area == "hang":
            time.sleep(3600)
        elif area == "status":
            self.answer(int(rest.split("/")[0]), {})
        elif area == "away":
            port = self.server.server_address[1]
            self.answer(302, {"Location": f"http://localhost:{port}/private/{rest}"})
        elif area in ("private", "private-to") and not self.knows_token(auth):
            self.answer(401, {"WWW-Authenticate": 'Basic realm="git"'})
        elif area in ("to", "private-to"):
            self.answer(302, {"Location": f"http://{rest}"})
        elif "/info/lfs/objects/" in rest:
            self.serve_large_files(*rest.split("/info/lfs/objects/"), body)
        else:
            self.run_git("/" + rest, body)

    def serve_large_files(self, repository, request, body):
        folder = os.path.join(FOLDER, repository, "lfs/objects")
        path = lambda oid: os.path.join(folder, oid[:2], oid[2:4], oid)
        if request != "batch":
            return self.answer(200, {}, open(path(request), "rb").read())
        here = f"{SCHEME}://{self.headers['Host']}{self.path.removesuffix('/batch')}"
        objects = []
        for wanted in json.loads(body)["objects"]:
            if os.path.exists(os.path.join(FOLDER, "LFS_ANSWER")):
                wanted.update(json.load(open(os.path.join(FOLDER, "LFS_ANSWER"))))
            elif os.path.exists(path(wanted["oid"])):
                wanted["actions"] = {"download": {"href": f"{here}/{wanted['oid']}"}}
            else:
                wanted["error"] = {"code": 404, "message": "Object does not exist"}
            objects.append(wanted)
        answer = {"transfer": "basic", "objects": objects}
        self.answer(200, {"Content-Type": "application/vnd.git-lfs+json"}, json.dumps(answer).encode())

    def knows_token(self, auth):
        kind, _, value = auth.partition(" ")
        return kind == "Basic" and base64.b64decode(value).decode().split(":", 1)[1] == TOKEN

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def run_git(self, target, body):
        path, _, query = target.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": FOLDER,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        git = subprocess.run(["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE)
        head, _, content = git.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        self.answer(status, headers, content)

    def answer(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((os.environ.get("ADDRESS", "127.0.0.1"), 0), Handler)
server.daemon_threads = True
if CERTIFICATE:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
