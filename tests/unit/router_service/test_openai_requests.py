"""OpenAI's request bodies: what is read, what is left alone, what is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.router_service.schemas.openai_requests import ChatRequest, CompletionRequest

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": HELLO, **fields})


class TestPrompt:
    @pytest.mark.parametrize(
        ("given", "read"),
        [
            ("a", ("a",)),
            (["a", "b"], ("a", "b")),
            ([1, 2], ((1, 2),)),
            ([[1], [2, 3]], ((1,), (2, 3))),
        ],
    )
    def test_every_form(self, given: Any, read: Any) -> None:
        assert CompletionRequest(prompt=given).prompt == read

    @pytest.mark.parametrize("given", [None, [], [[]], [True], [1.5], ["a", 1], [["a"]], {}, 3, ["a"] * 2000])
    def test_anything_else_is_refused(self, given: Any) -> None:
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"prompt": given})


class TestMessages:
    def test_parts_of_text_are_joined(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

        assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "ab"

    def test_an_answer_can_be_sent_back_as_it_came(self) -> None:
        echoed = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None}

        assert chat(messages=[*HELLO, echoed]).messages[1].content == "x"

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            {"role": "user", "content": [{"type": "text", "text": 1}]},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "1"},
            {"role": "user"},
        ],
    )
    def test_what_is_not_text_is_refused(self, message: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            chat(messages=[message])


class TestUnsupported:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tools", [{"type": "function"}]),
            ("tool_choice", "required"),
            ("functions", [{}]),
            ("response_format", {"type": "json_schema", "json_schema": {}}),
            ("modalities", ["text", "audio"]),
            ("audio", {"voice": "x"}),
            ("best_of", 2),
            ("suffix", "end"),
            ("reasoning_effort", "high"),
            ("web_search_options", {}),
            ("temprature", 0.5),
        ],
    )
    def test_what_would_change_the_answer_is_named(self, name: str, value: Any) -> None:
        assert chat(**{name: value}).unsupported() == name

    @pytest.mark.parametrize(
        "fields",
        [
            {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
            {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "best_of": 1},
            {"tools": None, "audio": None, "suffix": None, "temprature": None},
            {"parallel_tool_calls": True, "prompt_cache_key": "k", "safety_identifier": "s"},
        ],
    )
    def test_what_asks_for_nothing_is_left_alone(self, fields: dict[str, Any]) -> None:
        assert chat(**fields).unsupported() is None


class TestNulls:
    def test_null_asks_for_the_default(self) -> None:
        assert chat(temperature=None, stop=None, n=None, stream_options=None, max_tokens=None) == chat()

    def test_a_single_stop_string_is_a_list_of_one(self) -> None:
        assert chat(stop="x").stop == ("x",)
