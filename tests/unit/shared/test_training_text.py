"""Training files: the forms that are read, and complaints that name the line."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.shared import training_records, training_text
from services.shared.errors import InvalidDataset, InvalidRequest
from services.shared.training_text import Example, count_examples, read_examples


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "upload"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestForms:
    @pytest.mark.parametrize(
        ("line", "example"),
        [
            ({"text": "whole"}, Example("whole", None)),
            ({"prompt": "2+2=", "completion": "4"}, Example("2+2=4", ((4, 5),))),
            ({"prompt": "", "completion": "4"}, Example("4", ((0, 1),))),
            ({"text": "with others", "id": 7}, Example("with others", None)),
            (
                {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
                Example("user: hi\nassistant: ho\n", ((20, 23),)),
            ),
            ({"messages": [{"role": "user", "content": "hi"}]}, Example("user: hi\n", None)),
        ],
        ids=["text", "prompt and completion", "no prompt", "more keys", "conversation", "no answer"],
    )
    def test_json_lines(self, tmp_path: Path, line: dict[str, object], example: Example) -> None:
        path = written(tmp_path, f"\ufeff{json.dumps(line)}\r\n\n")

        assert read_examples(path, filename="a.jsonl") == [example]

    def test_every_turn_of_the_assistant_is_a_completion_but_those_of_weight_0(self, tmp_path: Path) -> None:
        chat = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d", "weight": 0},
            {"role": "assistant", "content": "e", "weight": 1},
            {"role": "user", "content": "thanks"},
        ]

        [example] = read_examples(written(tmp_path, json.dumps({"messages": chat})), filename="a.jsonl")

        assert example.completions is not None
        assert [example.text[slice(*span)] for span in example.completions] == ["b\n", "e\n"]

    def test_a_models_own_chat_template_is_used(self, tmp_path: Path) -> None:
        def template(messages: object, *, add_generation_prompt: bool, generation_mark: str = "") -> str:
            return "<p>" if add_generation_prompt else "<p>answer"

        path = written(
            tmp_path,
            json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]}),
        )

        assert read_examples(path, filename="a.jsonl", chat_template=template) == [Example("<p>answer", ((3, 9),))]

    def test_a_conversation_that_the_template_refuses_is_named_by_its_line(self, tmp_path: Path) -> None:
        def template(
            messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, generation_mark: str = ""
        ) -> str:
            if messages[0]["role"] != "user":
                raise InvalidRequest("The chat template refuses these messages: start with the user")
            return "chat"

        chats = [[{"role": role, "content": "x"}] for role in ("user", "assistant")]
        path = written(tmp_path, "".join(json.dumps({"messages": chat}) + "\n" for chat in chats))

        with pytest.raises(InvalidDataset, match="line 2: The chat template refuses these messages: start"):
            read_examples(path, filename="a.jsonl", chat_template=template)

    def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(self, tmp_path: Path) -> None:
        paragraphs = [f"{number} " + "word " * 100 for number in range(20)]

        examples = read_examples(written(tmp_path, "\n\n".join(paragraphs)), filename="a.txt")

        assert len(examples) > 2
        assert "\n\n".join(example.text for example in examples).split() == " ".join(paragraphs).split()

    def test_text_without_blank_lines_is_cut_too(self, tmp_path: Path) -> None:
        examples = read_examples(written(tmp_path, "a line of text\n" * 5000), filename="a.txt")

        assert max(len(example.text) for example in examples) < 5 * training_text.DOCUMENT_CHARACTERS

    @pytest.mark.parametrize(("content", "num_examples"), [('{"text": "a"}\n{"text": "b"}', 2), ("just words", 1)])
    def test_of_other_names_the_first_line_decides(self, tmp_path: Path, content: str, num_examples: int) -> None:
        assert count_examples(written(tmp_path, content), filename="a.dat") == num_examples


class TestComplaints:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"text": "cut off', "not JSON"),
            ('["text"]', "a list, not an object"),
            ('{"question": "q", "answer": "a"}', "holds 'question', 'answer'"),
            ('{"text": "a", "completion": "b"}', "must be one of"),
            ('{"text": 3}', "'text' must be a string"),
            ('{"text": "  "}', "'text' is empty"),
            ('{"completion": "b"}', "'prompt' is missing"),
            ('{"prompt": "a", "completion": null}', "'completion' must be a string"),
            ('{"messages": []}', "at least one message"),
            ('{"messages": [{"role": "wizard", "content": "x"}]}', "needs a 'role'"),
            ('{"messages": [{"role": "user"}]}', "'content' is missing"),
            ('{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}', "weight 0"),
            ('{"text": "\\ud800"}', "surrogate"),
            ('{"text": ' + "[" * 100_000, "nested too deeply|not JSON"),
            ('{"n": ' + "9" * 5000 + "}", "not JSON|holds 'n'"),
        ],
    )
    def test_name_the_line_and_the_reason_and_stay_short(self, tmp_path: Path, line: str, reason: str) -> None:
        path = written(tmp_path, '{"text": "fine"}\n\n' + line)

        with pytest.raises(InvalidDataset, match=reason) as raised:
            read_examples(path, filename="a.jsonl")

        assert "line 3:" in raised.value.message
        assert len(raised.value.message) < 300

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b" \n\n", "is empty"),
            (b'{"text": "a"}\n\xff\xfe\x00', "line 2: byte 1 is not UTF-8"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git-LFS pointer"),
        ],
    )
    def test_of_files_that_are_no_text(self, tmp_path: Path, content: bytes, reason: str) -> None:
        with pytest.raises(InvalidDataset, match=reason):
            read_examples(written(tmp_path, content), filename="a.jsonl")

    def test_an_endless_line_is_refused_before_it_is_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training_records, "MAX_LINE_BYTES", 100)

        with pytest.raises(InvalidDataset, match="line 1: longer than 100 bytes"):
            read_examples(written(tmp_path, '{"text": "' + "x" * 200 + '"}'), filename="a.jsonl")
