"""Calls http_server.py through a sidecar with httpx, HTTP/1.1 and HTTP/2 by prior knowledge; prints "fine".

    httpx_client.py PROXY:PORT AUTHORITY
"""

import sys

import httpx

base = f"http://{sys.argv[1]}"
headers = {"host": sys.argv[2]}
body = bytes(range(256)) * 4096

for options in ({"http1": True, "http2": False}, {"http1": False, "http2": True}):
    with httpx.Client(base_url=base, headers=headers, timeout=20, trust_env=False, **options) as client:
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):
            answer = client.request(method, "/echo", params={"q": "a b"}, content=body if method != "GET" else None)
            assert answer.status_code == 200, answer
            assert answer.headers["x-method"] == method, answer.headers
            assert answer.headers["x-query"] == "q=a+b", answer.headers
            assert answer.content == (body if method != "GET" else b""), len(answer.content)
        assert client.head("/echo").content == b""
        assert client.get("/none").status_code == 204
        # Of unknown length both ways.
        parts = (body[:1000] for _ in range(1000))
        assert client.post("/echo", params={"digest": 1}, content=parts).json()["bytes"] == 1_000_000
        with client.stream("GET", "/pieces", params={"count": 1000, "bytes": 5000}) as answer:
            assert sum(len(piece) for piece in answer.iter_raw()) == 5_000_000
        with client.stream("GET", "/events") as answer:
            lines = [line for line in answer.iter_lines() if line]
            assert lines == ["data: 0", "data: 1", "data: 2"], lines
        # Left in the middle of an answer: the next call is none the worse.
        with client.stream("GET", "/pieces", params={"count": 100000, "bytes": 5000}) as answer:
            next(answer.iter_raw())
        assert client.get("/none").status_code == 204
        assert answer.http_version == ("HTTP/2" if options["http2"] else "HTTP/1.1"), answer.http_version
print("fine")
