"""How long do users wait when many ask at once?

    python -m jobs.serve --index URI --video_qa MODEL &
    python -m benchmarks.serve_load [--address http://127.0.0.1:8000] [--users 20] [--rounds 10]

Every user searches, looks at the pictures of the best video and at the map, and asks a question, again and
again without a pause. Any answer that is not a success ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests

from pipelines.tables import table

COLOURS, SHAPES, MOTIONS = ("red", "blue", "green"), ("circle", "square", "star"), ("moves left", "grows", "turns")


class User:
    """Asks one thing after the other, and remembers how long each took."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.number = address, number
        self.taken: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []
        self._session = requests.Session()

    def act(self, rounds: int, *, answers: bool) -> None:
        for turn in range(rounds):
            # Users start at different queries, so that those at the same time differ.
            place = self.number + turn
            query = f"a {COLOURS[place % 3]} {SHAPES[place // 3 % 3]} {MOTIONS[place // 9 % 3]}"
            found = self._send("search", "POST", "/api/search", {"query": query})
            if not found:
                continue
            best = found["matches"][0]
            for frame in range(min(best["frames"], 4)):
                self._send("picture", "GET", f"/api/videos/{best['video_id']}/frames/{frame}")
            self._send("map", "POST", "/api/interaction", {"query": query, "video_id": best["video_id"]})
            if answers:
                self._send("answer", "POST", "/api/ask", {"question": "what shape is it", "video_id": best["video_id"]})

    def _send(self, name: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        started = time.perf_counter()
        try:
            response = self._session.request(method, self.address + path, json=body, timeout=120)
        except requests.RequestException as error:
            self.errors.append(f"{name}: {error}")
            return None
        self.taken[name].append(time.perf_counter() - started)
        if not response.ok:
            self.errors.append(f"{name}: {response.status_code} {response.text[:200]}")
            return None
        return response.json() if "json" in response.headers["Content-Type"] else response.content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="http://127.0.0.1:8000")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    health = requests.get(f"{options.address}/api/health", timeout=120).json()
    users = [User(options.address, number) for number in range(options.users)]
    started = time.perf_counter()
    with ThreadPoolExecutor(options.users) as threads:
        list(threads.map(lambda user: user.act(options.rounds, answers=health["answers"]), users))
    seconds = time.perf_counter() - started
    rows, total = [], 0
    for name in ("search", "picture", "map", "answer"):
        taken = 1000 * np.array([value for user in users for value in user.taken[name]])
        total += len(taken)
        if len(taken):
            shares = [f"{np.percentile(taken, share):,.0f}" for share in (50, 95, 100)]
            rows.append([name, f"{len(taken):,}", *shares])
    errors = [error for user in users for error in user.errors]
    print(f"{options.users} users, {health['videos']:,} videos, {total:,} requests in {seconds:.1f} s")
    print(table(["", "requests", "p50, ms", "p95, ms", "longest, ms"], rows))
    print(f"{len(errors)} errors", *errors[:5], sep="\n  ")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
