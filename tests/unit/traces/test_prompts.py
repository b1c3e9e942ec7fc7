"""Prompts of a trace: those that come with the project, and files of the requirements' form."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from services.shared.errors import InvalidDataset, InvalidRequest
from services.shared.schemas.trace import TraceJobSpec, read_prompts_file
from services.traces.default_prompts import default_prompts

FILE_ID = f"file-{'0' * 32}"
PROMPT = {"id": "a", "domain": "code", "prompt": "def f", "n_predict": 100}


class TestDefaultPrompts:
    def test_are_eight_of_each_of_the_requirements_domains(self) -> None:
        prompts = default_prompts(per_domain=8).prompts

        assert Counter(one.domain for one in prompts) == dict.fromkeys(
            ("code", "math", "creative", "factual", "mixed"), 8
        )
        assert len({one.prompt for one in prompts}) == len({one.id for one in prompts}) == 40
        assert {one.n_predict for one in prompts} == {100}

    def test_may_be_fewer(self) -> None:
        assert [one.id for one in default_prompts(per_domain=2).prompts][:3] == ["code-1", "code-2", "math-1"]


class TestPromptsFile:
    def test_may_number_its_prompts_and_say_more_than_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps({"experiment_name": "x", "version": 2, "prompts": [PROMPT | {"id": 1, "more": 0}]}))

        file = read_prompts_file(path)

        assert file.experiment_name == "x"
        assert file.prompts[0].id == "1"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("no json", "Invalid JSON"),
            ("[]", "the file"),
            ('{"prompts": []}', "prompts"),
            (json.dumps({"prompts": [PROMPT | {"n_predict": 0}]}), r"prompts\.0\.n_predict"),
            (json.dumps({"prompts": [PROMPT | {"domain": "../x"}]}), r"prompts\.0\.domain"),
            (json.dumps({"experiment_name": "../x", "prompts": [PROMPT]}), "experiment_name"),
        ],
    )
    def test_that_is_wrong_is_told_where(self, tmp_path: Path, content: str, reason: str) -> None:
        path = tmp_path / "prompts.json"
        path.write_text(content)

        with pytest.raises(InvalidDataset, match=reason):
            read_prompts_file(path)

    def test_has_no_id_twice_in_a_domain(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps({"prompts": [PROMPT, PROMPT]}))

        with pytest.raises(InvalidRequest, match="the id 'a'"):
            read_prompts_file(path)


class TestSpecification:
    def test_needs_nothing(self) -> None:
        spec = TraceJobSpec()
        spec.check()

        assert spec.named_trace() == "trace of the active release"

    @pytest.mark.parametrize(
        "fields",
        [
            {"prompts": [PROMPT], "prompts_file": FILE_ID},
            {"prompts": [PROMPT, PROMPT]},
            {"model": "mixtral", "release": "release-1"},
            {"prompt_set": "general", "prompts_per_domain": 9},
        ],
    )
    def test_does_not_contradict_itself(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest):
            TraceJobSpec.model_validate(fields).check()
