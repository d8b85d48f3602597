"""A receiver that keeps what it gets and offers a digest of it: WEBHOOK_SECRET=whsec_… python receiver.py PORT."""

import hashlib
import json
import os
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from standardwebhooks.webhooks import Webhook

KEPT = sqlite3.connect("kept.db", isolation_level=None)
KEPT.execute("CREATE TABLE IF NOT EXISTS mail (email_id TEXT PRIMARY KEY, sha256 TEXT, node TEXT)")
KEPT.execute("CREATE INDEX IF NOT EXISTS mail_node ON mail (node, email_id, sha256)")


def keep(mail):
    month, day = mail["internaldate"][:7], mail["internaldate"][8:10]  # it is in UTC
    node = f"{mail['account']}/{month}/{day}/{hashlib.sha256(mail['email_id'].encode()).hexdigest()}"
    KEPT.execute("INSERT OR REPLACE INTO mail VALUES (?, ?, ?)", (mail["email_id"], mail["sha256"], node))


def digest(node):
    depth = len(node.split("/")) if node else 0  # 1: account, 2: month, 3: day, 4: first digits of the bucket
    start = f"{node}/" if 0 < depth < 4 else node
    count, total, entries, children = 0, 0, {}, {}
    query = "SELECT email_id, sha256, node FROM mail WHERE node >= ? AND node < ?"
    for email_id, sha256, path in KEPT.execute(query, (start, start + "\U0010ffff")):
        number = int.from_bytes(hashlib.sha256(f"{email_id} {sha256}".encode()).digest())
        name = path[len(start)] if depth > 2 else path[len(start) :].split("/")[0]
        below = children.setdefault(name, [0, 0])
        count, total, below[0], below[1] = count + 1, total ^ number, below[0] + 1, below[1] ^ number
        if count <= 32:
            entries[email_id] = sha256
    named = {name: {"count": number, "digest": f"{value:064x}"} for name, (number, value) in children.items()}
    return {"count": count, "digest": f"{total:064x}"} | ({"children": named} if count > 32 else {"entries": entries})


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        said = Webhook(os.environ["WEBHOOK_SECRET"]).verify(body, dict(self.headers))
        if said["type"] == "email.received":
            keep(said["data"])
        self.answer({})

    def do_GET(self):
        node = parse_qs(urlsplit(self.path).query).get("node", [""])[0]
        Webhook(os.environ["WEBHOOK_SECRET"]).verify(json.dumps(node), dict(self.headers))
        self.answer(digest(node))

    def answer(self, record):
        body = json.dumps(record).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    print(f"http://127.0.0.1:{server.server_port}/mail", flush=True)
    server.serve_forever()
