"""A forward proxy on loopback, for whoever sends the login LOGIN (`user:password`).

    LOGIN=… http_proxy.py

The port is the only line on standard output; every accepted request is one line on standard error: `METHOD target`. Hosts
below `.invalid` stand for 127.0.0.1, so a client that does not use the proxy cannot find them.
"""

import base64
import http.client
import http.server
import os
import select
import socket
import sys
from urllib.parse import urlsplit

LOGIN = "Basic " + base64.b64encode(os.environ["LOGIN"].encode()).decode()


def address(host, port):
    return ("127.0.0.1" if host.endswith(".invalid") else host), port


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def is_refused(self):
        if self.headers.get("Proxy-Authorization") == LOGIN:
            print(self.command, self.path, file=sys.stderr, flush=True)
            return False
        self.send_response(407, "Proxy Authentication Required")
        self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_CONNECT(self):
        if self.is_refused():
            return
        host, _, port = self.path.rpartition(":")
        try:
            server = socket.create_connection(address(host, int(port)))
        except OSError:
            return self.send_error(502, "Cannot Connect")
        self.send_response(200, "Connection established")
        self.end_headers()
        self.close_connection = True
        ends = [self.connection, server]
        while True:
            for end in select.select(ends, [], [])[0]:
                data = end.recv(65536)
                if not data:
                    return server.close()
                ends[1 - ends.index(end)].sendall(data)

    def pass_on(self):
        body = self.body()
        if self.is_refused():
            return
        url = urlsplit(self.path)
        server = http.client.HTTPConnection(*address(url.hostname, url.port or 80))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
        target = url.path + ("?" + url.query if url.query else "")
        server.request(self.command, target, body, headers)
        answer = server.getresponse()
        content = answer.read()
        self.send_response(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_HEAD = do_PUT = pass_on

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


# Of one connection, or of this proxy.
OWN = ("proxy-authorization", "connection", "transfer-encoding", "content-length")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
