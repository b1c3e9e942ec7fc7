"""What the router service costs on top of the expert service: the same routed requests through it and past it.

The whole stack runs as `adaptive-moe up` starts it, on the demo base model: it is small, so the hop weighs most. Every
round asks directly and through the router service, with one stream and with many, so that a noisy machine disturbs all
alike. Added latency and ratios are taken within a round. Scoring is what the router service does before it asks a
replica (tokenising, scoring, planning), as a share of the prefill of the same prompt.

    python -m benchmarks.hop --rounds 15

writes benchmarks/results/hop-<date>.json and .md.
"""

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.results_file import machine, write_results
from services.trainer_worker.demo.domains import DOMAINS

PROJECT = Path(__file__).resolve().parents[1]
START_S = 180.0
MAX_CANDIDATES = 16
SYSTEMS = ("direct", "router")


@dataclass(frozen=True)
class Prompt:
    """A text, and the body by which the expert service is asked for the same."""

    text: str
    direct: dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """Seconds from sending to the first event and to the last, and how many tokens came."""

    first_s: float
    total_s: float
    num_tokens: int

    @property
    def token_ms(self) -> float:
        """Milliseconds per token after the first."""
        return 1000 * (self.total_s - self.first_s) / max(1, self.num_tokens - 1)


@dataclass(frozen=True)
class Round:
    """The streams of one system in one round, and how long all of them took together."""

    streams: list[Stream]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return sum(stream.num_tokens for stream in self.streams) / self.seconds

    def median(self, name: str) -> float:
        """Of a figure of the streams."""
        return statistics.median(getattr(stream, name) for stream in self.streams)


@contextmanager
def stack() -> Iterator[dict[str, Any]]:
    """`adaptive-moe up` on free ports; yields its endpoints."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="amoe-hop-") as folder:
        Path(folder).chmod(0o755)
        command = [sys.executable, "-m", "services.local_stack", "up", "--state", folder, "--port", "0"]
        with (Path(folder) / "up.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
        try:
            yield wait_until_ready(process, Path(folder))
        finally:
            process.terminate()  # SIGINT would not be heard by what a shell started in the background
            process.wait(60)


def wait_until_ready(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    """The endpoints, once the router service answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            endpoints: dict[str, Any] = json.loads((folder / "endpoints.json").read_text())
            if httpx.get(f"{endpoints['router']}/ready").status_code == httpx.codes.OK:
                return endpoints
        except (OSError, ValueError, httpx.HTTPError):
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the stack did not start:\n{(folder / 'up.log').read_text()[-4000:]}")


def routed_prompt(router: str, text: str, num_new: int) -> Prompt:
    """The request as the router service would send it on."""
    release = next(r for r in httpx.get(f"{router}/releases").json()["data"] if r["status"] == "active")
    experts = [{key: expert[key] for key in ("name", "version", "digest")} for expert in release["experts"]]
    tokens = httpx.post(f"{router}/route", json={"inputs": text}, timeout=60).json()["tokens"]
    plan = {
        "mode": "routed",
        "release": release["id"],
        "router": release["router_digest"],
        "graph": release["graph_digest"],
        "experts": experts,
        "candidates": [expert["name"] for expert in experts][:MAX_CANDIDATES],
    }
    body = {
        "request_id": "hop",
        "prompt_ids": [token["id"] for token in tokens],
        "sampling": {"max_new_tokens": num_new, "ignore_eos_token": True},
        "plan": plan,
    }
    return Prompt(text, body)


async def ask(http: httpx.AsyncClient, endpoints: dict[str, Any], system: str, prompt: Prompt, num_new: int) -> Stream:
    """One stream, its events counted as they come."""
    if system == "direct":
        url, body, end = f"{endpoints['experts'][0]}/sequences", prompt.direct, b"\n"
    else:
        parameters = {"max_new_tokens": num_new, "ignore_eos_token": True}
        url, end = f"{endpoints['router']}/generate_stream", b"\n\n"
        body = {"inputs": prompt.text, "parameters": parameters}
    began, first, num_events = time.perf_counter(), 0.0, 0
    async with http.stream("POST", url, json=body) as response:
        response.raise_for_status()
        async for chunk in response.aiter_raw():
            first = first or time.perf_counter() - began
            num_events += chunk.count(end)
    num_tokens = num_events - (system == "direct")  # the replica's last event is no token
    assert num_tokens == num_new, f"{system} sent {num_tokens} tokens, not {num_new}"
    return Stream(first, time.perf_counter() - began, num_tokens)


async def measure(
    http: httpx.AsyncClient, endpoints: dict[str, Any], system: str, prompts: Items[Prompt], num_new: int
) -> Round:
    """All prompts at once."""
    began = time.perf_counter()
    streams = await asyncio.gather(*(ask(http, endpoints, system, prompt, num_new) for prompt in prompts))
    return Round(list(streams), time.perf_counter() - began)


def planning_seconds(router: str) -> tuple[float, float]:
    """Sum and count of the router service's planning."""
    text = httpx.get(f"{router}/metrics").text
    found = {name: float(value) for name, value in re.findall(r"^amoe_planning_seconds_(sum|count) (\S+)$", text, re.M)}
    return found["sum"], found["count"]


def prefill_ms(expert: str, prompt: Prompt) -> float:
    """The replica's own word on reading a prompt."""
    body = {**prompt.direct, "sampling": {"max_new_tokens": 1, "ignore_eos_token": True}}
    lines = httpx.post(f"{expert}/sequences", json=body, timeout=60).text.splitlines()
    milliseconds: float = json.loads(lines[-1])["timings"]["prefill_ms"]
    return milliseconds


def scoring(endpoints: dict[str, Any], text: str, rounds: int) -> dict[str, float]:
    """Planning and prefill of one long prompt, in milliseconds."""
    router = endpoints["router"]
    prompt = routed_prompt(router, text, 1)
    planned, prefilled = [], []
    for _ in range(rounds):
        sum_before, count_before = planning_seconds(router)
        body = {"inputs": text, "parameters": {"max_new_tokens": 1}}
        httpx.post(f"{router}/generate", json=body, timeout=60).raise_for_status()
        sum_after, count_after = planning_seconds(router)
        planned.append(1000 * (sum_after - sum_before) / (count_after - count_before))
        prefilled.append(prefill_ms(endpoints["experts"][0], prompt))
    return {
        "num_prompt_tokens": len(prompt.direct["prompt_ids"]),
        "planning_ms": round(statistics.median(planned), 3),
        "prefill_ms": round(statistics.median(prefilled), 3),
        "share": round(statistics.median(p / q for p, q in zip(planned, prefilled, strict=True)), 4),
    }


def summary(rounds: Items[dict[str, Round]]) -> dict[str, Any]:
    """Medians and quartiles over rounds of what the router service adds."""

    def added(name: str, factor: float) -> list[float]:
        return quartiles([factor * (r["router"].median(name) - r["direct"].median(name)) for r in rounds])

    return {
        "direct_tokens_per_second": round(statistics.median(r["direct"].tokens_per_second for r in rounds), 1),
        "router_tokens_per_second": round(statistics.median(r["router"].tokens_per_second for r in rounds), 1),
        "throughput_ratio": quartiles([r["router"].tokens_per_second / r["direct"].tokens_per_second for r in rounds]),
        "added_first_token_ms": added("first_s", 1000),
        "added_token_ms": added("token_ms", 1),
        "added_request_ms": added("total_s", 1000),
    }


def quartiles(values: Items[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return [round(values[0], 3)] * 3
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


async def run(endpoints: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    names = [name for name, domain in DOMAINS.items() if domain.in_demo]
    texts = [
        DOMAINS[names[i % len(names)]].generate(21 + i, 1, "held_out")[0].prompt for i in range(max(options.streams))
    ]
    prompts = [routed_prompt(endpoints["router"], text, options.new_tokens) for text in texts]
    measured: dict[int, list[dict[str, Round]]] = {num_streams: [] for num_streams in options.streams}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as http:
        for number in range(-1, options.rounds):
            for num_streams, rounds in measured.items():
                systems = SYSTEMS if number % 2 else SYSTEMS[::-1]
                together = {
                    system: await measure(http, endpoints, system, prompts[:num_streams], options.new_tokens)
                    for system in systems
                }
                if number >= 0:  # the first warms up
                    rounds.append(together)
            print(f"round {number + 1} of {options.rounds}", flush=True)
    return {str(num_streams): summary(rounds) for num_streams, rounds in measured.items()}


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown."""

    def cell(values: Items[float]) -> str:
        return f"**{values[1]:.2f}** [{values[0]:.2f}, {values[2]:.2f}]"

    lines = [
        "| streams | direct, tokens/s | through the router, tokens/s | throughput ratio | added to the first token, ms "
        "| added per token, ms | added per request, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for num_streams, entry in result["streams"].items():
        added = [cell(entry[f"added_{name}_ms"]) for name in ("first_token", "token", "request")]
        speeds = [f"{entry[f'{system}_tokens_per_second']:,.0f}" for system in SYSTEMS]
        lines.append(f"| {' | '.join([num_streams, *speeds, cell(entry['throughput_ratio']), *added])} |")
    score = result["scoring"]
    lines.append(
        f"\nTokenising, scoring and planning a prompt of {score['num_prompt_tokens']} tokens takes "
        f"{score['planning_ms']:.2f} ms, {100 * score['share']:.1f} % of its prefill of {score['prefill_ms']:.1f} ms."
    )
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-characters", type=int, default=1200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    started = machine()
    story = " ".join(item.prompt for item in DOMAINS["creative"].generate(5, 40, "held_out"))
    with stack() as endpoints:
        streams = asyncio.run(run(endpoints, options))
        scores = scoring(endpoints, story[: options.prompt_characters], options.rounds)
    figures = {"rounds": options.rounds, "new_tokens": options.new_tokens, "streams": streams, "scoring": scores}
    write_results(
        options.output / "hop",
        title="The hop from router service to expert service",
        about=(
            f"{options.rounds} interleaved rounds, wall-clock time, {options.new_tokens} new tokens a stream, demo "
            "base model, active release of five experts. Median [quartiles] over rounds; what is added is the router's "
            "median stream less the direct one's."
        ),
        machine=started,
        table=table(figures),
        figures=figures,
    )


if __name__ == "__main__":
    main()
