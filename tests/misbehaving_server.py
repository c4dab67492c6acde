"""A local server that speaks enough of the OpenAI chat protocol to teach, and misbehaves on purpose.

    python tests/misbehaving_server.py --latency 0.05 --faults 429,500,hang --share 0.05

Standard library only, one event loop: it starts at once and answers more requests a second than a client can send.
The item is the first `item NUMBER` in the last message; its correction is `right NUMBER`. Each fault befalls its share
of the items, chosen by a hash: for their first one or two requests, or, for a `stubborn` share of these, for all of
them. `GET /stats` tells how often each item was asked and answered.
"""

import argparse
import asyncio
import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager


FAULTS = ("429", "500", "hang", "cut", "empty", "not_json", "truncated", "wrong_format")


def plan(item: int, faults: list[str], share: float, stubborn: float) -> tuple[str | None, float]:
    """Which fault befalls an item, and how many of its requests."""
    digest = hashlib.sha256(f"item {item}".encode()).digest()
    place, patience, more = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8))
    index = int(place / share) if share else len(faults)
    if index >= len(faults):
        return None, 0
    return faults[index], float("inf") if patience < stubborn else 1 + (more < 0.5)


class Server:
    def __init__(self, options):
        self.options = options
        self.faults = options.faults.split(",") if options.faults else []
        self.asked, self.answered = {}, {}
        self.most_at_once = self.at_once = 0
        self.authorizations = set()

    async def handle(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if (found := re.search(r"(?im)^authorization: (.*?)\r?$", head)) is not None:
                    self.authorizations.add(found[1])
                if head.startswith("GET /stats"):
                    stats = {"asked": self.asked, "answered": self.answered, "most_at_once": self.most_at_once}
                    send(writer, 200, {**stats, "authorizations": sorted(self.authorizations)})
                elif "/chat/completions" not in head.partition("\r\n")[0]:
                    send(writer, 404, {"detail": "Not Found"})
                elif not await self.chat(writer, json.loads(body)):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def chat(self, writer, request) -> bool:
        """Answers one request; whether the connection goes on."""
        options = self.options
        if options.status:
            key = sorted(self.authorizations)[0] if self.authorizations else "none"
            send(writer, options.status, {"error": {"message": f"Incorrect key: {key}", "code": options.code}})
            return True
        item = int(re.search(r"item (\d+)", request["messages"][-1]["content"])[1])
        count = self.asked[item] = self.asked.get(item, 0) + 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            fault, times = plan(item, self.faults, options.share, options.stubborn)
            fault = fault if count <= times else None
            if fault == "hang":
                await asyncio.sleep(3600)
            await asyncio.sleep(options.latency)
        finally:
            self.at_once -= 1
        text = f"Let me see.\n<corrected_response>\nright {item}\n</corrected_response>"
        if options.judge:
            text = f"<feedback>It is off by {item}.</feedback>\n<score>{item % 11}</score>"
        if options.echo_key and item % options.echo_key == 0:
            text = text.replace("right", f"{' '.join(self.authorizations)} right")
        answer = {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        }
        if fault == "429":
            send(writer, 429, {"error": {"message": "slow down"}}, f"Retry-After: {options.retry_after}\r\n")
        elif fault == "500":
            send(writer, 500, {"error": "internal"})
        elif fault == "cut":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"cho')
            return False
        elif fault == "not_json":
            send(writer, 200, b"<html>Bad gateway</html>")
        else:
            if fault == "empty":
                answer["choices"][0]["message"]["content"] = ""
            elif fault == "truncated":
                answer["choices"][0].update(message={"content": text[:25]}, finish_reason="length")
            elif fault == "wrong_format":
                answer["choices"][0]["message"]["content"] = f"Of course! Here it is: right {item}"
            else:
                self.answered[item] = self.answered.get(item, 0) + 1
            send(writer, 200, answer)
        return True


def send(writer, status: int, answer, more: str = ""):
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)


async def serve(options):
    server = await asyncio.start_server(Server(options).handle, "127.0.0.1", options.port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Running:
    """A server that runs in a process of its own."""

    def __init__(self, process):
        self.process = process
        self.url = f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"

    def stats(self) -> dict:
        """How often each item was asked and answered; the most requests at once; the keys that were sent."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url.replace("/v1", "/stats")) as reply:
            stats = json.load(reply)
        return {
            name: {int(item): count for item, count in value.items()} if isinstance(value, dict) else value
            for name, value in stats.items()
        }


@contextmanager
def running(**options):
    """Start a server with some options; as a context manager."""
    arguments = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--judge", type=int, default=0, help="1: reply as a judge, with the item's number modulo 11.")
    parser.add_argument("--latency", type=float, default=0.0, help="Seconds until a reply.")
    parser.add_argument("--faults", default="", help=f"Some of {','.join(FAULTS)}.")
    parser.add_argument("--share", type=float, default=0.05, help="Share of the items that each fault befalls.")
    parser.add_argument("--stubborn", type=float, default=0.0, help="Share of these that never get an answer.")
    parser.add_argument("--retry_after", default="0.2", help="What 429 asks for.")
    parser.add_argument("--status", type=int, default=0, help="Answer everything with this status.")
    parser.add_argument("--code", default="", help="Error code that goes with it.")
    parser.add_argument("--echo_key", type=int, default=0, help="Put the key into the reply of every n-th item.")
    asyncio.run(serve(parser.parse_args()))
