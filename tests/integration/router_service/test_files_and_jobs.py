"""Uploads, and jobs up to the moment a worker takes them."""

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_events, job_lease
from services.shared.config import Settings
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus

pytestmark = pytest.mark.integration

LINES = b'{"text": "a"}\n{"prompt": "2+2=", "completion": "4"}\n'


def upload(client: httpx.Client, content: bytes = LINES, filename: str = "train.jsonl") -> str:
    response = client.post("/files", data={"purpose": "fine-tune"}, files={"file": (filename, content)})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def table(texts: list[str], filename: str) -> bytes:
    """A column of texts as CSV or Parquet, by the name's ending."""
    if filename.endswith("csv"):
        return "\n".join(["text", *texts]).encode()
    content = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), content)
    return content.getvalue()


def submit(client: httpx.Client, file_id: str, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", None)
    return client.post(
        "/jobs", json={"kind": "expert", "name": "math", "training_file": file_id, **fields}, headers=headers
    )


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


class TestFiles:
    def test_an_upload_is_kept_byte_for_byte(self, client: httpx.Client, storage: Storage) -> None:
        content = bytes(range(256)) * 10_000

        file_id = upload(client, content, "../../etc/x.jsonl")

        shown = client.get(f"/files/{file_id}").json()
        assert storage.upload(file_id).read_bytes() == content
        assert (shown["filename"], shown["num_bytes"], shown["purpose"]) == ("x.jsonl", len(content), "fine-tune")

    def test_lists_page_newest_first(self, client: httpx.Client) -> None:
        ids = [upload(client) for _ in range(3)]

        first = client.get("/files?limit=2").json()
        second = client.get(f"/files?limit=2&after={first['data'][-1]['id']}").json()

        assert [file["id"] for file in first["data"] + second["data"]] == ids[::-1]
        assert (first["has_more"], second["has_more"]) == (True, False)

    def test_deleting_removes_bytes_and_record(self, client: httpx.Client, storage: Storage) -> None:
        file_id = upload(client)

        assert client.delete(f"/files/{file_id}").json()["deleted"] is True

        assert client.get(f"/files/{file_id}").status_code == 404
        assert not storage.upload(file_id).exists()

    def test_a_file_that_a_job_needs_is_kept(self, client: httpx.Client) -> None:
        file_id = upload(client)
        job_id = submit(client, file_id).json()["id"]

        assert error_of(client.delete(f"/files/{file_id}"), 409)["code"] == "file_in_use"
        client.post(f"/jobs/{job_id}/cancel")
        assert client.delete(f"/files/{file_id}").status_code == 200

    def test_wrong_uploads_leave_nothing(
        self, client: httpx.Client, storage: Storage, subtests: pytest.Subtests
    ) -> None:
        good = {"file": ("a.jsonl", LINES)}
        cases: dict[str, tuple[dict[str, str], Any, str]] = {
            "no purpose": ({}, good, "purpose"),
            "unknown purpose": ({"purpose": "cake"}, good, "purpose"),
            "empty": ({"purpose": "fine-tune"}, {"file": ("a.jsonl", b"")}, "file"),
            "no file": ({"purpose": "fine-tune", "file": "text"}, {}, "file"),
        }
        for name, (data, files, param) in cases.items():
            with subtests.test(name):
                assert error_of(client.post("/files", data=data, files=files), 400)["param"] == param
                assert list(storage.uploads.iterdir()) == []


class TestUploadLimit:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        small = settings.storage.model_copy(update={"max_upload_bytes": 2048})
        return settings.model_copy(update={"storage": small})

    def test_a_larger_file_is_refused_and_leaves_nothing(self, client: httpx.Client, storage: Storage) -> None:
        response = client.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * 3000)})

        assert error_of(response, 413)["code"] == "payload_too_large"
        assert list(storage.uploads.iterdir()) == []


class TestSubmission:
    def test_a_job_is_queued_and_the_workers_are_told_its_id(self, client: httpx.Client, redis_url: str) -> None:
        with redis.Redis.from_url(redis_url) as broker:
            broker.flushdb()
            response = submit(client, upload(client), hyperparameters={"max_steps": 5}, add_to_release=True)
            messages = broker.lrange("cpu", 0, -1)

        assert response.status_code == 202, response.text
        job = response.json()
        assert (job["status"], job["kind"], job["attempt"]) == ("queued", "expert", 0)
        assert job["spec"]["hyperparameters"]["max_steps"] == 5
        assert client.get(f"/jobs/{job['id']}").json() == job
        [message] = messages
        assert job["id"] in json.loads(message)["headers"]["kwargsrepr"]
        assert b"hyperparameters" not in message

    def test_a_wrong_specification_is_refused(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        file_id = upload(client)
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({"kind": "cake"}, None),
            ({"name": "base"}, "name"),
            ({"name": "Not A Name"}, "name"),
            ({"training_file": "../../etc/passwd"}, "training_file"),
            ({"hyperparameters": {"rank": 0}}, "hyperparameters.rank"),
            ({"hyperparameters": {"learning_rat": 1}}, "hyperparameters.learning_rat"),
            ({"activate": True}, "activate"),
        ]
        for fields, param in cases:
            with subtests.test(str(fields)):
                assert error_of(submit(client, file_id, **fields), 400)["param"] == param
                assert client.get("/jobs").json()["data"] == []

    def test_a_file_that_is_not_there_is_not_found(self, client: httpx.Client) -> None:
        error = error_of(submit(client, f"file-{'0' * 32}"), 404)

        assert (error["param"], error["code"]) == ("training_file", "file_not_found")

    def test_a_malformed_line_is_told_by_its_number(self, client: httpx.Client) -> None:
        file_id = upload(client, LINES + b'{"text": "cut')

        for field in ("training_file", "validation_file"):
            good = upload(client)
            error = error_of(submit(client, good, **{field: file_id}), 422)

            assert error["param"] == field
            assert "train.jsonl line 3: not JSON" in error["message"]
        assert client.get("/jobs").json()["data"] == []

    @pytest.mark.parametrize("filename", ["train.csv", "train.parquet"])
    def test_tables_are_read_through_too(self, client: httpx.Client, filename: str) -> None:
        good, bad = (table(texts, filename) for texts in (["a", "b"], ["a", "b", "  "]))

        accepted = submit(client, upload(client, good, filename))
        refused = error_of(submit(client, upload(client, bad, filename)), 422)

        assert accepted.status_code == 202, accepted.text
        place = "line 4" if filename.endswith("csv") else "row 3"
        assert f"{filename} {place}: 'text' is empty" in refused["message"]
        assert len(client.get("/jobs").json()["data"]) == 1

    def test_an_image_experiment_is_queued_with_its_defaults(self, client: httpx.Client) -> None:
        response = client.post("/jobs", json={"kind": "image_cooperation"})

        assert response.status_code == 202, response.text
        spec = response.json()["spec"]
        stated = {"num_experts": 8, "top_k": 2, "l1": 0.1, "num_epochs": 10, "setting": "published", "graph": "learned"}
        assert spec.items() >= stated.items()
        assert spec["data"] == {"source": "digits"}

    def test_pictures_need_not_be_text_but_must_be_there(self, client: httpx.Client) -> None:
        pictures = upload(client, b"PAR1\xff\xfe", "train.parquet")
        data = {"source": "files", "train": [pictures], "test": [f"file-{'0' * 32}"]}

        error = error_of(client.post("/jobs", json={"kind": "image_cooperation", "data": data}), 404)
        data["test"] = [pictures]
        accepted = client.post("/jobs", json={"kind": "image_cooperation", "data": data})

        assert (error["param"], error["code"]) == ("data.test.0", "file_not_found")
        assert accepted.status_code == 202, accepted.text

    def test_a_wrong_image_experiment_is_refused(self, client: httpx.Client, subtests: pytest.Subtests) -> None:
        for fields, param in (
            ({"top_k": 9}, "top_k"),
            ({"setting": "weak"}, "setting"),
            ({"l1": -1}, "l1"),
            ({"hyperparameters": {"l1_step": "leap"}}, "hyperparameters.l1_step"),
        ):
            with subtests.test(str(fields)):
                error = error_of(client.post("/jobs", json={"kind": "image_cooperation", **fields}), 400)
                assert error["param"] == param

    def test_an_evaluation_names_text_that_is_there_and_a_release_that_is_there(self, client: httpx.Client) -> None:
        file_id = upload(client)
        job = {"kind": "evaluation", "held_out": {"math": file_id}}

        no_release = error_of(client.post("/jobs", json={**job, "release": "release-7"}), 404)
        no_file = error_of(client.post("/jobs", json={**job, "unknown_file": f"file-{'0' * 32}"}), 404)
        accepted = client.post("/jobs", json=job)

        assert no_release["param"] == "release"
        assert no_file["param"] == "unknown_file"
        assert accepted.status_code == 202, accepted.text
        assert accepted.json()["spec"]["seeds"] == [0, 1, 2]

    def test_what_a_study_of_a_release_cannot_be_is_refused(
        self, client: httpx.Client, subtests: pytest.Subtests
    ) -> None:
        file_id = upload(client)
        study = {"kind": "evaluation", "held_out": {"math": file_id}}
        graph = {"kind": "cooperation_graph", "training_files": {"math": file_id}}
        for job, param in (
            ({**study, "held_out": {}}, "held_out"),
            ({**study, "seeds": [1, 1]}, "seeds"),
            ({**study, "thresholds": [1.0]}, "thresholds.0"),
            ({**study, "release": "7"}, "release"),
            ({**study, "tempers": [0.3, 0.3]}, "tempers"),
            ({**study, "peers": ["arrow", "arrow"]}, "peers"),
            ({**study, "peers": ["phatgoose"]}, "peers.0"),
            ({**study, "peers": ["x_lora"]}, "training_files"),
            ({**study, "peers": ["multi_task"], "training_files": {"plays": file_id}}, "training_files"),
            ({**study, "peers": ["arrow"], "training_files": {"math": file_id}}, "training_files"),
            ({**graph, "training_files": {}}, "training_files"),
            ({**graph, "create_release": True, "controls": False}, "controls"),
            ({**graph, "l1": -1}, "l1"),
            ({**graph, "l1_sweep": [1, 1]}, "l1_sweep"),
            ({**graph, "hyperparameters": {"batch_size": 512}}, "hyperparameters.batch_size"),
        ):
            with subtests.test(str(job)):
                assert error_of(client.post("/jobs", json=job), 400)["param"] == param

    def test_an_unknown_expert_of_a_router_job_is_not_found(self, client: httpx.Client) -> None:
        error_of(client.post("/jobs", json={"kind": "router", "experts": ["nobody"]}), 404)

    def test_a_repeated_request_with_its_key_finds_the_first_job(self, client: httpx.Client) -> None:
        file_id = upload(client)
        answers: list[str] = []

        def ask() -> None:
            answers.append(submit(client, file_id, headers={"idempotency-key": "k1"}).json()["id"])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(set(answers)) == 1
        assert len(client.get("/jobs").json()["data"]) == 1


class TestChatTemplate:
    @pytest.fixture
    def settings(self, settings: Settings, tmp_path: Path) -> Settings:
        template = tmp_path / "template.jinja"
        template.write_text(
            "{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}ok",
            encoding="utf-8",
        )
        return settings.model_copy(update={"chat_template": template})

    def test_a_chat_that_it_refuses_is_told_before_the_job_is_made(self, client: httpx.Client) -> None:
        chats = [[{"role": role, "content": "x"}] for role in ("user", "assistant")]
        content = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats).encode()

        error = error_of(submit(client, upload(client, content)), 422)

        assert error["param"] == "training_file"
        assert "line 2: The chat template refuses these messages: start with the user" in error["message"]
        assert client.get("/jobs").json()["data"] == []


class TestWithoutBroker:
    @pytest.fixture
    def redis_url(self) -> str:
        return "redis://127.0.0.1:9/0"

    def test_a_job_is_queued_all_the_same(self, client: httpx.Client) -> None:
        response = submit(client, upload(client))

        assert response.status_code == 202
        assert client.get("/jobs").json()["data"][0]["status"] == "queued"


class TestJobs:
    def test_lists_page_newest_first_and_filter(self, client: httpx.Client) -> None:
        file_id = upload(client)
        ids = [submit(client, file_id).json()["id"] for _ in range(3)]
        client.post(f"/jobs/{ids[0]}/cancel")

        first = client.get("/jobs?limit=2").json()
        second = client.get(f"/jobs?limit=2&after={first['data'][-1]['id']}").json()
        cancelled = client.get("/jobs?status=cancelled&kind=expert").json()["data"]

        assert [job["id"] for job in first["data"] + second["data"]] == ids[::-1]
        assert [job["id"] for job in cancelled] == [ids[0]]

    def test_cancelling_twice_is_a_conflict_that_is_not_retried(self, client: httpx.Client) -> None:
        job_id = submit(client, upload(client)).json()["id"]

        assert client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        again = client.post(f"/jobs/{job_id}/cancel")

        assert again.status_code == 409
        assert again.headers["x-should-retry"] == "false"


class TestPausing:
    def test_a_paused_job_waits_until_it_is_resumed(self, client: httpx.Client, redis_url: str) -> None:
        job_id = submit(client, upload(client)).json()["id"]
        paused = client.post(f"/jobs/{job_id}/pause").json()
        with redis.Redis.from_url(redis_url) as broker:
            broker.flushdb()

            resumed = client.post(f"/jobs/{job_id}/resume").json()

            assert broker.llen("cpu") == 1
        assert (paused["status"], resumed["status"]) == ("paused", "queued")
        again = client.post(f"/jobs/{job_id}/resume")
        assert error_of(again, 409)["code"] == "job_not_paused"

    def test_of_an_ended_or_unknown_job_is_refused(self, client: httpx.Client) -> None:
        job_id = submit(client, upload(client)).json()["id"]
        client.post(f"/jobs/{job_id}/cancel")

        for verb in ("pause", "resume"):
            error_of(client.post(f"/jobs/{job_id}/{verb}"), 409)
            error_of(client.post(f"/jobs/job-unknown/{verb}"), 404)


class TestTurns:
    def test_priority_queue_and_user_are_the_rows_and_no_part_of_the_spec(
        self, client: httpx.Client, redis_url: str
    ) -> None:
        with redis.Redis.from_url(redis_url) as broker:
            broker.flushdb()
            job = submit(client, upload(client), priority=7, queue="gpu", user="ann@example.org").json()
            assert (broker.llen("gpu"), broker.llen("cpu")) == (1, 0)

        assert (job["priority"], job["queue"], job["user"]) == (7, "gpu", "ann@example.org")
        assert not {"priority", "queue", "user", "dry_run"} & set(job["spec"])

    def test_what_is_no_priority_queue_or_user_is_refused(
        self, client: httpx.Client, subtests: pytest.Subtests
    ) -> None:
        file_id = upload(client)
        cases: tuple[dict[str, Any], ...] = (
            {"priority": 10}, {"priority": -1}, {"queue": "tpu"}, {"user": "a b"}, {"user": "x" * 129}
        )  # fmt: skip
        for fields in cases:
            with subtests.test(str(fields)[:40]):
                assert error_of(submit(client, file_id, **fields), 400)["param"] == next(iter(fields))


class TestLimitPerUser:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"max_unfinished_jobs": 2}

    def test_holds_each_user_to_so_many_unfinished_jobs_however_they_come(self, client: httpx.Client) -> None:
        file_id = upload(client)
        together = threading.Barrier(6)

        def ask(_: int) -> httpx.Response:
            together.wait()
            return submit(client, file_id, user="ann")

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(6)))

        assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 4
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert error_of(refused, 429)["code"] == "too_many_jobs"
        assert "ann has 2 jobs" in refused.json()["error"]["message"]
        assert submit(client, file_id, user="bob").status_code == 202
        client.post(f"/jobs/{next(a for a in answers if a.status_code == 202).json()['id']}/cancel")
        assert submit(client, file_id, user="ann").status_code == 202


class TestEvents:
    def test_history_then_what_happens_until_the_job_ends(
        self, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        job_id = submit(client, upload(client)).json()["id"]

        def work() -> None:
            with sessions.begin() as session:
                job_lease.claim_job(session, job_id, owner="w", lease_s=60, max_attempts=3)
            time.sleep(0.7)
            with sessions.begin() as session:
                job_events.add_event(session, job_id, "Step 1.", type="metrics", data={"loss": 2.5})
            with sessions.begin() as session:
                job_lease.finish_job(session, job_id, owner="w", status=JobStatus.SUCCEEDED, result={})

        worker = threading.Thread(target=work)
        worker.start()
        events = self.read(client, job_id)
        worker.join()

        assert [event["type"] for event in events] == ["status", "status", "metrics", "status"]
        assert events[2]["data"] == {"loss": 2.5}
        assert events[-1]["data"]["status"] == "succeeded"

    def test_after_a_broken_connection_only_the_rest_is_sent(self, client: httpx.Client) -> None:
        job_id = submit(client, upload(client)).json()["id"]
        client.post(f"/jobs/{job_id}/cancel")
        all_events = self.read(client, job_id)

        rest = self.read(client, job_id, last_event_id=str(all_events[0]["id"]))

        assert rest == all_events[1:]

    def test_a_wrong_last_event_id_is_refused(self, client: httpx.Client) -> None:
        job_id = submit(client, upload(client)).json()["id"]

        for last_event_id in ("x", "-1", "9" * 30):
            error_of(client.get(f"/jobs/{job_id}/events", headers={"last-event-id": last_event_id}), 400)

    @staticmethod
    def read(client: httpx.Client, job_id: str, last_event_id: str | None = None) -> list[dict[str, Any]]:
        headers = {"last-event-id": last_event_id} if last_event_id else {}
        with client.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=20) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = list(response.iter_lines())
        ids = [int(line[3:]) for line in lines if line.startswith("id:")]
        events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
        assert ids == [event["id"] for event in events]
        return events
