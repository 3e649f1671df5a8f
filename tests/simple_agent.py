#!/usr/bin/env python3
"""An agent of another make: what one can write from the messages in the documentation alone.

    simple_agent.py [--pretend] AGENT_JSON

It sends LOG messages of a single line without numbers, and STATUS with nothing but a state, an exit
code and the image's name. With --pretend it builds nothing and says `completed` all the same. Of DEPLOY it
reads only the image and the port of its first endpoint, and runs one container.
"""

import base64
import hashlib
import json
import os
import platform
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse

ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


class Closed(Exception):
    """Core has closed the connection."""


class WebSocket:
    """The client's side of RFC 6455, as far as core needs it."""

    TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

    def __init__(self, base, path, headers=()):
        url = urllib.parse.urlsplit(base)
        self.socket = socket.create_connection((url.hostname, url.port or 80))
        self.stream = self.socket.makefile("rb")
        self.lock = threading.Lock()
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {url.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        )
        request += "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        self.socket.sendall(request.encode())
        status = self.stream.readline().split()
        headers = {}
        while line := self.stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        expected = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        if status[1:2] != [b"101"] or headers["sec-websocket-accept"] != base64.b64encode(expected).decode():
            raise Closed(f"no WebSocket: {status}")

    def send(self, message):
        self.frame(self.TEXT, json.dumps(message).encode())

    def frame(self, kind, payload):
        length = len(payload)
        head = bytes([0x80 | kind])
        if length < 126:
            head += bytes([0x80 | length])
        elif length < 1 << 16:
            head += bytes([0x80 | 126]) + struct.pack(">H", length)
        else:
            head += bytes([0x80 | 127]) + struct.pack(">Q", length)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        with self.lock:
            self.socket.sendall(head + mask + masked)

    def receive(self):
        """The next message, parsed if it is text; answers pings on the way."""
        data, is_text = b"", True
        while True:
            first, second = self.read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.read(8))
            payload, kind = self.read(length), first & 0x0F
            if kind == self.PING:
                self.frame(self.PONG, payload)
            elif kind == self.CLOSE:
                raise Closed("core says goodbye")
            elif kind != self.PONG:
                data += payload
                is_text = kind == self.TEXT if kind else is_text
                if first & 0x80:
                    return json.loads(data) if is_text else data

    def read(self, count):
        data = self.stream.read(count)
        if len(data) < count:
            raise Closed("the connection broke")
        return data


class Job:
    """One BUILD, MERGE or DEPLOY."""

    def __init__(self, message, connection, pretends):
        self.message, self.connection, self.pretends = message, connection, pretends
        self.process = None
        self.cancelled = False

    def run(self):
        job_id = self.message["job_id"]
        self.connection.send({"type": "STATUS", "job_id": job_id, "state": "running"})
        with tempfile.TemporaryDirectory(prefix="simple-agent-") as folder:
            code = self.work(folder)
        status = {"type": "STATUS", "job_id": job_id, "state": "failed", "exit_code": code}
        if code == 0:
            status |= {"state": "completed"}
            status |= {} if self.message["type"] == "DEPLOY" else {"artifact_url": self.target()}
        self.connection.send(status)

    def target(self):
        if self.message["type"] == "DEPLOY":
            return self.message["image"]
        return self.message.get("build_config", self.message)["target_image"]

    def work(self, folder):
        if self.pretends:
            self.say(f"pretending to make {self.target()}")
            return 0
        environment = {**os.environ, "DOCKER_CONFIG": folder + "/docker"}
        if self.message["type"] == "BUILD":
            steps = self.build(folder)
        else:
            steps = self.merge() if self.message["type"] == "MERGE" else self.deploy()
        for command, extra, stdin in [self.login(), *steps]:
            code = self.execute(command, {**environment, **extra}, stdin)
            if code != 0:
                return code
        return 0

    def login(self):
        auth, registry = self.message["registry_auth"], self.target().split("/")[0]
        command = ["docker", "login", "--username", auth["username"], "--password-stdin", registry]
        return command, {}, auth["password"]

    def build(self, folder):
        context, config = self.message["context"], self.message["build_config"]
        source = folder + "/source"
        git = ["git", "-C", source]
        user = base64.b64encode(f"token:{context.get('clone_token', '')}".encode()).decode()
        # In the environment and not among the arguments, which everybody on the machine can read.
        auth = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {user}",
        }
        build = ["docker", "buildx", "build", "--progress=plain", "--push"]
        build += ["--provenance=false", f"--platform={config['platform']}"]
        build += [f"--tag={config['target_image']}"]
        build += [f"--build-arg={name}" for name in config["build_args"]]
        build += [f"--cache-from=type=registry,ref={ref}" for ref in config["cache_from"]]
        path = os.path.join(source, config["context_path"])
        build += [f"--file={os.path.join(path, config['dockerfile'])}", path]
        return [
            (["git", "init", "--quiet", source], {}, ""),
            (git + ["fetch", "--quiet", "--depth=1", context["repo_url"], context["commit_hash"]], auth, ""),
            (git + ["checkout", "--quiet", "FETCH_HEAD"], {}, ""),
            (build, config["build_args"], ""),
        ]

    def deploy(self):
        remove_preview(self.message["preview_id"])
        run = ["docker", "run", "--detach", f"--name={self.message['preview_id']}"]
        return [(run + [f"--publish=127.0.0.1::{self.message['endpoints'][0]['port']}", self.target()], {}, "")]

    def merge(self):
        create = ["docker", "buildx", "imagetools", "create", "--tag", self.target()]
        return [(create + self.message["source_images"], {}, "")]

    def execute(self, command, environment, stdin):
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )
        if self.cancelled:
            self.cancel()
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        for line in self.process.stdout:
            self.say(line)
        return self.process.wait()

    def say(self, line):
        log = {"type": "LOG", "job_id": self.message["job_id"], "stream": "stdout", "data": line}
        self.connection.send(log)

    def cancel(self):
        self.cancelled = True
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)


def remove_preview(name):
    subprocess.run(["docker", "rm", "--force", "--volumes", name], stdout=subprocess.DEVNULL, check=True)


def address_of(name):
    """Where the only published port of a container is."""
    ports = subprocess.run(["docker", "port", name], capture_output=True, text=True, check=True)
    host, port = ports.stdout.split()[2].rsplit(":", 1)
    return host, int(port)


def forward(config):
    """Opens a tunnel, waits for a connection of core, and forwards it to the preview's container."""
    headers = [("Authorization", f"Bearer {config['token']}"), ("X-Stagely-Machine", config["agent_id"])]
    try:
        tunnel = WebSocket(config["core_url"], "/v1/agent/tunnel", headers)
        with socket.create_connection(address_of(tunnel.receive()["preview_id"])) as app:
            tunnel.send({"type": "OPENED"})
            threading.Thread(target=forward_answer, args=[app, tunnel], daemon=True).start()
            while isinstance(data := tunnel.receive(), bytes):
                app.sendall(data)
            app.shutdown(socket.SHUT_WR)
            tunnel.receive()
    except (Closed, OSError):
        pass


def forward_answer(app, tunnel):
    while data := app.recv(1 << 16):
        tunnel.frame(WebSocket.BINARY, data)
    tunnel.send({"type": "END"})


class Agent:
    """Says HELLO and does what core says, one job after the other."""

    def __init__(self, config, pretends):
        self.config = config
        self.connection = WebSocket(config["core_url"], "/v1/agent/connect")
        self.pretends = pretends
        self.jobs = {}
        self.waiting = queue.Queue()
        self.connection.send({
            "type": "HELLO",
            "version": "simple",
            "agent_id": config["agent_id"],
            "token": config["token"],
            "system_info": {
                "hostname": socket.gethostname(),
                "architecture": ARCHES[platform.machine()],
                "docker_version": "",
            },
        })

    def serve(self):
        threading.Thread(target=self.work, daemon=True).start()
        while True:
            message = self.connection.receive()
            kind = message["type"]
            if kind in ("BUILD", "MERGE", "DEPLOY"):
                job = Job(message, self.connection, self.pretends)
                self.jobs[message["job_id"]] = job
                self.waiting.put(job)
            elif kind == "CANCEL" and message["job_id"] in self.jobs:
                self.jobs[message["job_id"]].cancel()
            elif kind == "DIAL":
                for _ in range(message["connections"]):
                    threading.Thread(target=forward, args=[self.config], daemon=True).start()
            elif kind == "SLEEP":
                preview = message["preview_id"]
                remove_preview(preview)
                self.connection.send({"type": "PREVIEW", "preview_id": preview, "state": "archived"})
            elif kind == "TERMINATE":
                return
            elif kind == "ERROR":
                print(message["code"], message["message"], file=sys.stderr)

    def work(self):
        while True:
            self.waiting.get().run()


def main():
    arguments = sys.argv[1:]
    pretends = "--pretend" in arguments
    with open(arguments[-1], encoding="utf-8") as file:
        config = json.load(file)
    try:
        Agent(config, pretends).serve()
    except Closed as end:
        sys.exit(f"simple_agent: {end}")


main()
