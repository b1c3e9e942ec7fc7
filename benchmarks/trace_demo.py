"""The requirements' three questions, asked of the demo: a real stack traces its own mixture over the five domains.

1. Temporal correlation: does the expert of a token foretell that of the next ones? 2. Domain clustering: do domains use
different experts? 3. Stickiness: is an expert chosen again more often than its popularity explains?

A job of kind `trace` answers held-out items of the demo's own domains: one item is one observation. Weights that it
recorded are compared with those that `POST /generate` tells of the same greedy answers.

    python -m benchmarks.trace_demo --prompts 24

starts a stack of its own on free ports, and writes benchmarks/results/trace_demo-<date>.json and .md. Minutes.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx

from benchmarks.hop import stack
from benchmarks.results_file import RESULTS, machine, write_results
from services.trainer_worker.demo.domains import DEMO_DOMAINS
from services.trainer_worker.tracing.prompts import demo_prompts

_QUESTIONS: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "1. Temporal correlation": (
        ("autocorrelation, lag 1", "autocorrelation.indicator.0"),
        ("autocorrelation, lag 4", "autocorrelation.indicator.3"),
        ("repetition of the first choice, lag 1", "autocorrelation.repetition.0"),
        ("second eigenvalue of the transitions", "transitions.second_eigenvalue"),
    ),
    "2. Domain clustering": (
        ("Cramér's V, bias-corrected", "independence.cramers_v"),
        ("mutual information, bits", "mutual_information.bits"),
        ("mean Jensen-Shannon distance", "divergence.mean_distance"),
    ),
    "3. Stickiness": (
        ("repetition; null: shuffled within the prompt", "stickiness.repetition"),
        ("above popularity (sum of p²)", "stickiness.excess"),
        ("above its shuffled null", "stickiness.excess_within"),
        ("mean run, tokens", "run_lengths.mean"),
    ),
}
_PARTS: Final = ("prompt", "generated", "all")
_CHECK_TOKENS: Final = 32
_CHECK_PROMPTS: Final = 2


class Stack:
    """A running router service."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        """JSON of an answer that must be one."""
        return self._client.get(path, params=parameters).raise_for_status().json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Likewise."""
        return self._client.post(path, json=body).raise_for_status().json()

    def figure(self, trace: str, name: str, **parameters: Any) -> Any:
        """One of the only layer; None where the analysis has none of it."""
        answer = self._client.get(f"/traces/{trace}/analysis/{name}", params={"layer": 0} | parameters)
        return answer.json()["data"] if answer.status_code == httpx.codes.OK else None

    def trace(self, **fields: Any) -> tuple[str, dict[str, Any]]:
        """The trace that a job makes, and the job when it has ended."""
        job = self.post("/jobs", {"kind": "trace"} | fields)
        while job["status"] not in {"succeeded", "failed", "cancelled"}:
            time.sleep(0.5)
            job = self.get(f"/jobs/{job['id']}")
        if job["status"] != "succeeded":
            raise RuntimeError(f"{job['id']} {job['status']}: {job['error']}")
        return job["result"]["trace"], job


def compare_with_serving(served: Stack) -> dict[str, Any]:
    """Greedy answers of a trace beside those of /generate: are the tokens and the weights the same?"""
    trace, _ = served.trace(temperature=0, prompts_per_domain=_CHECK_PROMPTS, max_tokens=_CHECK_TOKENS)
    experts = served.get(f"/traces/{trace}")["description"]["experts"]
    num_tokens = num_same = 0
    largest = 0.0
    for number, prompt in enumerate(demo_prompts(per_domain=_CHECK_PROMPTS, seed=0).prompts):
        choices = served.get(f"/traces/{trace}/choices", layer=0, sequence=number, count=2000)["tokens"]
        parameters = {"max_new_tokens": _CHECK_TOKENS, "do_sample": False, "details": True}
        answer = served.post("/generate", {"inputs": prompt.prompt, "parameters": parameters})
        traced = [token["token_id"] for token in choices if token["phase"] == "generated"]
        # A token is predicted under the weights that its predecessor was read with.
        before = choices[len(choices) - len(traced) - 1 :]
        tokens = [token for token in answer["details"]["tokens"] if not token["special"]]
        num_same += traced == [token["id"] for token in tokens]
        for token, row in zip(tokens, before, strict=False):
            recorded = {experts[expert]: weight for expert, weight in zip(row["experts"], row["weights"], strict=True)}
            names = recorded.keys() | token["routing"].keys()
            largest = max(
                [largest, *(abs(recorded.get(name, 0.0) - token["routing"].get(name, 0.0)) for name in names)]
            )
            num_tokens += 1
    return {
        "prompts": _CHECK_PROMPTS * len(DEMO_DOMAINS),
        "prompts_with_the_same_tokens": num_same,
        "tokens": num_tokens,
        "largest_difference_of_a_weight": largest,
    }


def estimate_of(figures: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """One number of a layer's figures, of a series the one at a place, with its null and interval."""
    figure, field, *place = path.split(".")
    found = (figures.get(figure) or {}).get(field)
    if found is None or not place:
        return found
    number = int(place[0])
    return {key: value[number] if isinstance(value, list) else value for key, value in found.items()}


def answers(served: Stack, trace: str) -> dict[str, Any]:
    """By question and part of the tokens: what is counted, beside its null and interval."""
    names = sorted({path.split(".")[0] for paths in _QUESTIONS.values() for _, path in paths})
    told: dict[str, Any] = {}
    for part in _PARTS:
        figures = {name: served.figure(trace, name, phase=part) for name in names}
        told[part] = {
            question: {title: estimate_of(figures, path) for title, path in paths}
            for question, paths in _QUESTIONS.items()
        }
    return told


def shown(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.3g}"


def table(told: Mapping[str, Any]) -> str:
    """For people."""
    lines = [
        "| question | tokens | measure | value | 95 % interval | without the effect, 95 % | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for question in _QUESTIONS:
        for part in _PARTS:
            for title, one in told[part][question].items():
                if one is None:
                    continue
                value = one["value"] if one["corrected"] is None else one["corrected"]
                interval = f"{shown(one['low'])} to {shown(one['high'])}" if one["low"] is not None else ""
                null = shown(one["null"])
                if one["null_low"] is not None:
                    null += f" ({shown(one['null_low'])} to {shown(one['null_high'])})"
                cells = (question, part, title, shown(value), interval, null, shown(one["p_value"]))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Trace, compare, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=24, help="of each domain")
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()
    about = machine()
    with stack() as endpoints, httpx.Client(base_url=endpoints["router"], timeout=120) as client:
        served = Stack(client)
        compared = compare_with_serving(served)
        trace, job = served.trace(prompts_per_domain=arguments.prompts, temperature=arguments.temperature)
        description = served.get(f"/traces/{trace}")["description"]
        shares = served.figure(trace, "frequency", phase="generated")
        told = answers(served, trace)
    write_results(
        RESULTS / "trace_demo",
        title="The three questions, of the demo's mixture",
        about=f"{description['num_sequences']} held-out items of {len(description['domains'])} domains, "
        f"{description['num_tokens']} tokens, temperature {arguments.temperature}. Greedy answers and weights beside "
        f"those of /generate: {compared}.",
        machine=about,
        table=table(told),
        figures={
            "description": description,
            "job": job["result"],
            "compared_with_generate": compared,
            "frequency_generated": shares,
            "answers": told,
        },
    )


if __name__ == "__main__":
    main()
