"""A real HTTP server on this machine that answers as guards' servers do, and misbehaves where it is told to."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG = "hang"  # never answers
CUT = "cut"  # closes the connection in the middle of the answer
DROP = "drop"  # closes it before any answer


class Server:
    """`answer(request)` gives JSON, or (status, JSON or bytes, headers), or one of the faults above.

    `requests` holds what came in: path, headers, body, and when. `busiest` is the most that were open at once.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.busiest, self._open = answer, [], 0, 0
        self._lock, self.released = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def bodies(self):
        return [r["body"] for r in self.requests]

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer

            def do_POST(self):
                server.handle(self)

            def log_message(self, *args):
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, address):
                pass  # clients that gave up

        self._http = Http(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            request = {
                "path": handler.path,
                "headers": dict(handler.headers),
                "body": body,
                "at": time.monotonic(),
                "number": len(self.requests),
            }
            self.requests.append(request)
            self._open += 1
            self.busiest = max(self.busiest, self._open)
        try:
            with contextlib.suppress(OSError):
                self._send(handler, self.answer(request))
        finally:
            with self._lock:
                self._open -= 1

    def _send(self, handler, given):
        if given == HANG:
            self.released.wait(20)
        if given in (HANG, DROP):
            handler.close_connection = True
            handler.connection.close()
            return
        status, payload, headers = given if isinstance(given, tuple) else (200, given, {})
        cut = payload == CUT
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data) + (100 if cut else 0)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()
        if cut:
            handler.close_connection = True
            handler.connection.close()


def completion(pieces, shown, *, index=0, finish="stop"):
    """One choice of /v1/completions: tokens, and for each a {token: probability}."""
    logs = [{t: math.log(p) for t, p in top.items()} for top in shown]
    return {
        "index": index,
        "text": "".join(pieces),
        "finish_reason": finish,
        "stop_reason": None,
        "logprobs": {
            "text_offset": [sum(map(len, pieces[:i])) for i in range(len(pieces))],
            "token_logprobs": [log[p] for p, log in zip(pieces, logs, strict=True)],
            "tokens": list(pieces),
            "top_logprobs": logs,
        },
    }


def completions(*choices):
    """The whole answer of /v1/completions."""
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": list(choices), "usage": {}}


def chat(text, pieces=(), shown=(), *, finish="stop"):
    """The whole answer of /v1/chat/completions, with log-probabilities where pieces are given."""
    content = [
        {
            "token": piece,
            "logprob": math.log(top[piece]),
            "bytes": list(piece.encode()),
            "top_logprobs": [
                {"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in top.items()
            ],
        }
        for piece, top in zip(pieces, shown, strict=True)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": content} if pieces else None,
                "finish_reason": finish,
            }
        ],
    }


def classified(*rows, labels=("SAFE", "INJECTION")):
    """The answer of vLLM's /classify."""
    data = [
        {
            "index": i,
            "label": labels[max(range(len(r)), key=r.__getitem__)],
            "probs": list(r),
            "num_classes": len(r),
        }
        for i, r in enumerate(rows)
    ]
    return {"id": "classify-1", "object": "list", "created": 1, "model": "m", "data": data, "usage": {}}


def moderated(*scores):
    """The answer of /v1/moderations: one {category: score} for each input, flagged from 0.5."""
    results = [
        {
            "flagged": any(v >= 0.5 for v in s.values()),
            "categories": {k: v >= 0.5 for k, v in s.items()},
            "category_scores": s,
        }
        for s in scores
    ]
    return {"id": "modr-1", "model": "m", "results": results}
