"""A teacher behind HTTP: real servers on loopback that answer, are busy, slow, away, redirect, or send too much."""

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest

from services.local_stack.ports import free_port
from services.shared.config import TeacherSettings
from services.shared.errors import JobFailed
from services.trainer_worker.expert_creation.data_request import DataRequest
from services.trainer_worker.expert_creation.endpoint_teacher import EndpointTeacher, messages_for
from services.trainer_worker.progress import TrainingStopped
from tests.teacher_endpoint import answer, body, dripping, serving, status
from tests.waiting import wait_until

REQUEST = DataRequest("questions about chess", "chess", (("1. e4 *\n", "White.\n"), ("1. d4 *\n", "Black.\n")))
KEY = "sk-very-secret-indeed"


def teacher(url: str, *, should_stop: Callable[[], bool] = lambda: False, **settings: Any) -> EndpointTeacher:
    quick = {"backoff_s": 0.0, "max_attempts": 3, "api_key": KEY}
    return EndpointTeacher("big", TeacherSettings(url=url, model="big-1", **quick | settings), should_stop=should_stop)


class TestAsking:
    def test_is_a_chat_completion_with_the_key_and_the_examples(self) -> None:
        with serving(answer("the answer")) as endpoint:
            text = teacher(endpoint.url + "/").ask(REQUEST, count=7, number=0)

        [(path, headers, sent)] = endpoint.requests
        assert text == "the answer"
        assert path == "/v1/chat/completions"
        assert headers["authorization"] == f"Bearer {KEY}"
        assert sent["model"] == "big-1"
        question = sent["messages"][-1]["content"]
        assert "questions about chess" in question
        assert '{"prompt": "1. e4 *\\n", "completion": "White.\\n"}' in question
        assert "Write 7 new ones" in question

    def test_shows_the_examples_in_another_order_each_time(self) -> None:
        first, second = (messages_for(REQUEST, count=5, number=number)[-1]["content"] for number in (0, 1))

        assert first.index("e4") < first.index("d4")
        assert second.index("d4") < second.index("e4")

    def test_goes_on_when_the_endpoint_is_busy_or_talks_nonsense(self) -> None:
        with serving(status(429, retry_after="0"), body(b"<html>"), answer("at last")) as endpoint:
            text = teacher(endpoint.url).ask(REQUEST, count=5, number=0)

        assert text == "at last"
        assert len(endpoint.requests) == 3

    @pytest.mark.parametrize("after", ["soon", "\u00b2", "-1", "1e400", "Wed, 21 Oct 2026 07:28:00 GMT"])
    def test_a_retry_after_that_is_no_number_of_seconds_is_not_heard(self, after: str) -> None:
        with serving(status(503, retry_after=after), answer("at last")) as endpoint:
            assert teacher(endpoint.url).ask(REQUEST, count=5, number=0) == "at last"

    @pytest.mark.parametrize(
        "content", [b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"[" * 100_000, b"[]"]
    )
    def test_of_one_that_sends_no_completion_fails_after_its_attempts(self, content: bytes) -> None:
        with serving(body(content)) as endpoint, pytest.raises(JobFailed, match="3 attempts") as failed:
            teacher(endpoint.url).ask(REQUEST, count=5, number=0)

        assert failed.value.error_code == "teacher_unavailable"
        assert len(endpoint.requests) == 3

    def test_of_one_that_is_away_fails_with_advice_and_without_the_key(self) -> None:
        with pytest.raises(JobFailed, match="upload training_files instead") as failed:
            teacher(f"http://127.0.0.1:{free_port()}/v1").ask(REQUEST, count=5, number=0)

        assert failed.value.error_code == "teacher_unavailable"
        assert KEY not in failed.value.message


class TestBounds:
    def test_a_redirect_is_not_followed(self) -> None:
        with serving(answer("secret")) as inner, serving(status(307, location=f"{inner.url}/x")) as endpoint:
            with pytest.raises(JobFailed, match="redirects are not followed") as failed:
                teacher(endpoint.url).ask(REQUEST, count=5, number=0)

            assert inner.requests == []
        assert failed.value.error_code == "teacher_refused"
        assert len(endpoint.requests) == 1

    @pytest.mark.parametrize("code", [400, 401, 404])
    def test_a_refusal_is_not_repeated(self, code: int) -> None:
        with serving(status(code)) as endpoint, pytest.raises(JobFailed, match=f"status {code}") as failed:
            teacher(endpoint.url).ask(REQUEST, count=5, number=0)

        assert failed.value.error_code == "teacher_refused"
        assert len(endpoint.requests) == 1

    def test_too_large_an_answer_is_not_read(self) -> None:
        with (
            serving(answer("x" * 5000)) as endpoint,
            pytest.raises(JobFailed, match=r"more than 2,000 bytes; 1 attempts"),
        ):
            teacher(endpoint.url, max_response_bytes=2000, max_attempts=1).ask(REQUEST, count=5, number=0)

    def test_one_that_sends_a_byte_now_and_then_is_too_slow(self) -> None:
        with serving(dripping) as endpoint, pytest.raises(JobFailed, match="too slow"):
            teacher(endpoint.url, timeout_s=0.4, max_attempts=2).ask(REQUEST, count=5, number=0)

        assert len(endpoint.requests) == 2

    def test_attempts_end_with_the_budget(self) -> None:
        with serving(status(503)) as endpoint, pytest.raises(JobFailed, match="status 503; 1 attempts"):
            teacher(endpoint.url, budget_s=1.0, backoff_s=30.0).ask(REQUEST, count=5, number=0)

    def test_a_job_that_should_stop_does_not_wait(self) -> None:
        stop = Event()
        with serving(dripping) as endpoint:
            asked = teacher(endpoint.url, should_stop=stop.is_set, timeout_s=600.0)
            Thread(target=lambda: (wait_until(lambda: bool(endpoint.requests)), stop.set())).start()

            with pytest.raises(TrainingStopped):
                asked.ask(REQUEST, count=5, number=0)
