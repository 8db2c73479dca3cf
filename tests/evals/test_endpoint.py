"""A server that is not kvserve can be asked, but for policies."""

import asyncio
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from evals.endpoint import Endpoint
from evals.items import Item

ITEM = Item("niah", "completion", 512, 0, "The code for a b is 1234.", " The code for a b is", " 1234.")


class Stock(BaseHTTPRequestHandler):
    """Tokens are words; it answers rightly, and keeps what it was sent."""

    sent: list = []

    def do_GET(self):
        self.reply(200 if self.path == "/v1/models" else 404, {"object": "list", "data": [{"id": "stock"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            return self.reply(200, {"tokens": [hash(word) for word in body["prompt"].split()]})
        self.sent.append(body)
        choice = {"index": 0, "text": " 1234.", "finish_reason": "length", "logprobs": None}
        self.reply(200, {"id": "1", "object": "text_completion", "created": 0, "model": "stock", "choices": [choice]})

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    server = HTTPServer(("127.0.0.1", 0), Stock)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_stock_server_is_asked_without_policy(url):
    async def ask():
        endpoint = Endpoint(url, "stock")
        assert await endpoint.served() == "stock"
        assert await endpoint.policies() == {}
        sized = await endpoint.sized(ITEM)
        said = await endpoint.answer(sized, "full")
        await endpoint.close()
        return sized, said

    sized, said = asyncio.run(ask())
    assert (len(sized.prompt), sized.context, len(sized.answer)) == (13, 7, 1)
    assert (said.text, said.kept, said.bytes) == (" 1234.", 1.0, 1.0)
    [body] = Stock.sent
    assert "kv_policy" not in body and body["max_tokens"] == 1 and body["temperature"] == 0
