"""Domains that a teacher names: a real server on loopback, whose answers are believed as names only."""

from typing import Any

import pytest

from services.shared.config import TeacherSettings
from services.trainer_worker.expert_creation.endpoint_teacher import EndpointTeacher
from services.trainer_worker.gap_analysis.labelling import MAX_SHOWN, Labeller, as_name
from tests.teacher_endpoint import answer, serving, status

PROMPTS = [f"1. e4 e5 2. Nf3 in game {number}: who is to move?" for number in range(9)]


def labeller(url: str, told: list[str]) -> Labeller:
    settings = TeacherSettings(url=url, model="big-1", backoff_s=0.0, max_attempts=2)
    teacher = EndpointTeacher("big", settings, should_stop=lambda: False)
    return Labeller(teacher.chat, known=["code", "math"], tell=told.append)


def test_a_few_prompts_and_the_known_domains_are_sent_and_a_name_comes_back() -> None:
    told: list[str] = []
    with serving(answer("Chess.\n(It is a game.)")) as endpoint:
        named = labeller(endpoint.url, told).label(PROMPTS)

    [(_, _, sent)] = endpoint.requests
    question: Any = sent["messages"][-1]["content"]
    assert (named, told) == ("chess", [])
    assert "code, math" in question
    assert all(prompt in question for prompt in PROMPTS[:MAX_SHOWN])
    assert PROMPTS[MAX_SHOWN] not in question


def test_a_teacher_that_fails_is_told_of_and_not_asked_again() -> None:
    told: list[str] = []
    with serving(status(503), status(503), status(503), status(503)) as endpoint:
        ours = labeller(endpoint.url, told)
        named = [ours.label(PROMPTS), ours.label(PROMPTS)]

    assert named == [None, None]
    assert len(endpoint.requests) == 2
    assert len(told) == 1
    assert "No domain was named" in told[0]


def test_without_prompts_nobody_is_asked() -> None:
    with serving(answer("chess")) as endpoint:
        assert labeller(endpoint.url, []).label(()) is None

    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Board Games", "board games"),
        ("`recipes`", "recipes"),
        ("unknown", None),
        ("Base", None),
        ("", None),
        ("\n\n", None),
        ("I am sorry, but I cannot say that", None),
        ("x" * 80, None),
        ("'; DROP TABLE gaps; --", "drop table gaps"),
        ("法律", None),
    ],
)
def test_what_is_no_name_is_not_believed(said: str, name: str | None) -> None:
    assert as_name(said) == name
