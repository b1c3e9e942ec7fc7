"""The modes of integration on the demo, over HTTP: how many answers are right, and what each mode computes for them.

Checkable held-out items of the five demo domains, and such that come after a text of another domain (switching), are
asked for greedily in every mode, one request at a time, the modes in turn at each item so that a noisy machine disturbs
all alike. Tokens are those that the router service counts. The threshold of the cascade is the one that does best on
validation items; on held-out ones nothing is chosen. `oracle` names the expert of the item's domain.

    python -m benchmarks.integration_modes --seeds 0 1 2 --items 12

writes benchmarks/results/integration_modes-<date>.json and .md. Ten minutes of one core.
"""

import argparse
import itertools
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.hop import stack
from benchmarks.results_file import machine, write_results
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, Item, Split
from services.trainer_worker.demo.intervals import Estimate, paired_difference, wilson

SWITCHING: Final = "switching"
KINDS: Final = ("prompt", "generated", "reread")
_NEW_TOKENS: Final = 64
"""More than any item's completion has; answers end by themselves."""
_BASE: Final = {"adapter_id": "base"}
_MODES: Final[dict[str, dict[str, Any]]] = {
    "base": _BASE,
    "mixture": {},
    "single": {"integration": "single"},
    "ensemble, likelihood": {"integration": "ensemble"},
    "ensemble, vote": {"integration": "ensemble", "ensemble_choice": "vote"},
}


@dataclass(frozen=True)
class Question:
    """A prompt of a group (a domain, or switching), and the item that says what is right."""

    group: str
    domain: str
    prompt: str
    item: Item

    def is_right(self, answer: str) -> bool:
        """Whether an answer passes the domain's own check."""
        return DOMAINS[self.domain].is_correct(self.item, answer)


@dataclass(frozen=True)
class Asked:
    """What came of one question in one mode; `score` is the base's confidence in a cascade."""

    is_right: bool
    seconds: float
    tokens: Mapping[str, float]
    score: float | None = None
    chosen: str | None = None


def questions(seed: int, count: int, split: Split) -> list[Question]:
    """`count` of each domain, and twice as many after a text of the domain before it."""
    items = {name: DOMAINS[name].generate(seed, count, split) for name in DEMO_DOMAINS}
    asked = [Question(name, name, item.prompt, item) for name in DEMO_DOMAINS for item in items[name]]
    per_domain = -(-2 * count // len(DEMO_DOMAINS))
    for before, name in itertools.pairwise((*DEMO_DOMAINS, DEMO_DOMAINS[0])):
        texts = zip(items[before][:per_domain], items[name][:per_domain], strict=True)
        asked += [Question(SWITCHING, name, f"{first.text.rstrip()}\n{item.prompt}", item) for first, item in texts]
    return asked


class Asker:
    """Asks one router service."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(self, question: Question, parameters: Mapping[str, Any]) -> Asked:
        """One request alone."""
        before, began = self._tokens(), time.perf_counter()
        body = {"inputs": question.prompt, "parameters": {"max_new_tokens": _NEW_TOKENS, **parameters}}
        response = self._client.post("/generate", json=body).raise_for_status()
        seconds = time.perf_counter() - began
        counted = {kind: value - before[kind] for kind, value in self._tokens().items()}
        answer = response.json()
        candidates = (answer["routing"]["integration"] or {}).get("candidates", [])
        return Asked(
            question.is_right(answer["generated_text"]),
            seconds,
            counted,
            score=candidates[0]["score"] if candidates else None,
            chosen=next((each["written_by"] for each in candidates if each["chosen"]), None),
        )

    def _tokens(self) -> dict[str, float]:
        text = self._client.get("/metrics").text
        found = dict(re.findall(r'^amoe_tokens_total\{kind="(\w+)"\} (\S+)$', text, re.M))
        return {kind: float(found.get(kind, 0.0)) for kind in KINDS}


def best_threshold(asker: Asker, validation: Sequence[Question]) -> dict[str, Any]:
    """Of a cascade: what gives most right answers on these, and of equal ones the least work."""
    base = [asker.ask(question, {"integration": "cascade", "cascade_threshold": -1e9}) for question in validation]
    mixture = [asker.ask(question, {}) for question in validation]
    scores = [asked.score or 0.0 for asked in base]
    curve = []
    for threshold in [min(scores) - 0.01, *(round(score + 1e-3, 3) for score in sorted(scores))]:
        kept = [score >= threshold for score in scores]
        right = [(one if keep else other).is_right for keep, one, other in zip(kept, base, mixture, strict=True)]
        curve.append({"threshold": threshold, "right": sum(right), "experts_asked": len(kept) - sum(kept)})
    best = max(curve, key=lambda point: (point["right"], -point["experts_asked"]))
    return {
        "threshold": min(0.0, best["threshold"]),
        "validation_items": len(validation),
        "right": best["right"],
        "right_base": sum(asked.is_right for asked in base),
        "right_mixture": sum(asked.is_right for asked in mixture),
        "experts_asked": best["experts_asked"],
        "mean_score_of_right": _mean([score for score, asked in zip(scores, base, strict=True) if asked.is_right]),
        "mean_score_of_wrong": _mean([score for score, asked in zip(scores, base, strict=True) if not asked.is_right]),
    }


def measure(asker: Asker, asked: Sequence[Question], threshold: float) -> dict[str, list[Asked]]:
    """All questions in all modes."""
    modes = {**_MODES, "cascade": {"integration": "cascade", "cascade_threshold": threshold}}
    outcomes: dict[str, list[Asked]] = {name: [] for name in (*modes, "oracle")}
    for number, question in enumerate(asked):
        for name, parameters in {**modes, "oracle": {"adapter_id": question.domain}}.items():
            outcomes[name].append(asker.ask(question, parameters))
        if number % 50 == 49:
            print(f"{number + 1} of {len(asked)} questions", flush=True)
    return outcomes


def summary(asked: Sequence[Question], outcomes: Mapping[str, Sequence[Asked]]) -> dict[str, Any]:
    """By mode: shares of right answers, the difference to the mixture on the same items, tokens and time."""
    groups = [question.group for question in asked]
    mixture = [each.is_right for each in outcomes["mixture"]]
    return {
        name: {
            "by_group": {
                group: asdict(_share([each for each, of in zip(found, groups, strict=True) if of == group]))
                for group in dict.fromkeys(groups)
            },
            "all": asdict(_share(found)),
            "gain_over_mixture": asdict(paired_difference([each.is_right for each in found], mixture)),
            "tokens": {kind: _mean([each.tokens[kind] for each in found]) for kind in KINDS},
            "median_s": round(statistics.median(each.seconds for each in found), 4),
            "chosen": {
                writer: sum(each.chosen == writer for each in found)
                for writer in sorted({each.chosen for each in found if each.chosen})
            },
        }
        for name, found in outcomes.items()
    }


def _share(found: Sequence[Asked]) -> Estimate:
    return wilson(sum(each.is_right for each in found), len(found))


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None


def table(modes: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    groups = list(modes["mixture"]["by_group"])
    head = [
        "mode",
        *groups,
        "all [95 %]",
        "less the mixture, points [95 %]",
        "tokens read / generated / read again",
        "ms",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, entry in modes.items():
        shares = [f"{100 * entry['by_group'][group]['value']:.0f} %" for group in groups]
        whole, gain = entry["all"], entry["gain_over_mixture"]
        tokens = entry["tokens"]
        cells = [
            name,
            *shares,
            f"**{100 * whole['value']:.1f} %** [{100 * whole['low']:.1f}, {100 * whole['high']:.1f}]",
            f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]",
            f"{tokens['prompt']:.0f} / {tokens['generated']:.0f} / {tokens['reread']:.0f}",
            f"{1000 * entry['median_s']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--items", type=int, default=12, help="of each domain and seed; twice as many switch")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    started = machine()
    with stack() as endpoints, httpx.Client(base_url=endpoints["router"], timeout=120, trust_env=False) as client:
        asker = Asker(client)
        cascade = best_threshold(asker, questions(options.seeds[0], 2 * options.items, "validation"))
        asked = [question for seed in options.seeds for question in questions(seed, options.items, "held_out")]
        modes = summary(asked, measure(asker, asked, cascade["threshold"]))
        # Inside: what has been measured is written even if the stack does not end in time.
        figures = {"seeds": options.seeds, "num_questions": len(asked), "cascade": cascade, "modes": modes}
        write_results(
            options.output / "integration_modes",
            title="Modes of integration on the demo",
            about=(
                f"{len(asked)} held-out questions from {len(options.seeds)} seeds, greedy, one at a time, modes in "
                f"turn. Cascade: threshold {cascade['threshold']:.3f} nats, by validation questions. Intervals: "
                "Wilson's; of differences, bootstrap over questions. Tokens are means per request, milliseconds "
                "medians."
            ),
            machine=started,
            table=table(modes),
            figures=figures,
        )


if __name__ == "__main__":
    main()
