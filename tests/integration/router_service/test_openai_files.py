"""`/v1/files` as OpenAI's own client speaks it."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from services.shared.storage import Storage

pytestmark = pytest.mark.integration

LINES = b'{"text": "a"}\n{"prompt": "2+2=", "completion": "4"}\n'


@pytest.fixture(name="ai")
def openai_client(router_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def upload(ai: openai.OpenAI, filename: str = "train.jsonl", content: bytes = LINES) -> str:
    return ai.files.create(file=(filename, content), purpose="fine-tune").id


class TestFiles:
    def test_an_upload_is_shown_as_openai_shows_it_and_read_back_byte_for_byte(self, ai: openai.OpenAI) -> None:
        content = bytes(range(256)) * 5000

        made = ai.files.create(file=("../odd name.jsonl", content), purpose="fine-tune")
        shown = ai.files.retrieve(made.id)

        assert shown == made
        assert (shown.object, shown.filename, shown.bytes, shown.purpose, shown.status) == (
            "file",
            "odd name.jsonl",
            len(content),
            "fine-tune",
            "processed",
        )
        assert ai.files.content(made.id).read() == content

    def test_both_apis_show_the_same_files(self, ai: openai.OpenAI, client: httpx.Client) -> None:
        theirs = upload(ai)
        ours = client.post("/files", data={"purpose": "evals"}, files={"file": ("a.txt", b"x")}).json()["id"]

        assert client.get(f"/files/{theirs}").json()["num_bytes"] == len(LINES)
        assert ai.files.retrieve(ours).purpose == "evals"
        assert [file.id for file in ai.files.list(purpose="evals")] == [ours]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_hold_every_file_once_in_order(self, ai: openai.OpenAI, order: Any) -> None:
        ids = [upload(ai) for _ in range(5)]

        first = ai.files.list(limit=2, order=order)
        walked = [file.id for file in first]

        assert first.has_more is True
        assert walked == (ids if order == "asc" else ids[::-1])

    def test_deleting_removes_bytes_and_record(self, ai: openai.OpenAI, storage: Storage) -> None:
        file_id = upload(ai)

        assert ai.files.delete(file_id).deleted is True

        assert not storage.upload(file_id).exists()
        for call in (ai.files.retrieve, ai.files.content, ai.files.delete):
            with pytest.raises(openai.NotFoundError) as missing:
                call(file_id)
            assert missing.value.code == "file_not_found"

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"purpose": "assistants"}, "purpose"),
            ({"file": ("a.jsonl", b"")}, "file"),
            ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after"),
        ],
        ids=["purpose", "empty", "expiry"],
    )
    def test_wrong_uploads_are_refused_and_leave_nothing(
        self, ai: openai.OpenAI, storage: Storage, asked: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            ai.files.create(**{"file": ("a.jsonl", LINES), "purpose": "fine-tune", **asked})

        assert refused.value.param == param
        assert list(storage.uploads.iterdir()) == []
