"""The client commands as a shell runs them, against a real router service on a socket."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.ports import free_port
from services.router_service.main import build_app
from services.shared import job_events, job_lease, jobs
from services.shared.config import Settings
from services.shared.schemas.jobs import JobProgress, RouterJobSpec
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus
from services.trainer_worker.job_runner import JobRunner
from tests.integration.router_service.running import served
from tests.unit.traces.importers.recordings import route, routes

pytestmark = pytest.mark.integration

Cli = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = (sys.executable, "-m", "services.command_line")
TIMEOUT_S = 120


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "AMOE_URL": url, "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def cli(router_url: str, tmp_path: Path) -> Cli:
    """Runs a command and waits for it; the address comes from the environment."""

    def run(*arguments: str, stdin: str = "", url: str = router_url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            env={**environment(url), "PYTHONPATH": os.getcwd()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run


def printed(result: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a command printed."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def running_job(sessions: sessionmaker[Session]) -> str:
    """A job that a worker holds."""
    with sessions.begin() as session:
        job_id = jobs.create_job(session, RouterJobSpec()).id
        job_lease.claim_job(session, job_id, owner="w", lease_s=600, max_attempts=3)
        job_lease.begin_work(session, job_id, owner="w")
    return job_id


class TestReleases:
    def test_made_activated_compared_and_taken_back(self, three_experts: str, cli: Cli, client: httpx.Client) -> None:
        made = printed(cli("releases", "create", "code", "math", "--note", "fewer", "--json"))
        activated = printed(cli("releases", "activate", made["id"], "--if-active", three_experts, "--json"))
        compared = cli("releases", "compare", three_experts, made["id"])
        listed = cli("releases", "list")
        back = cli("releases", "rollback", "--if-active", made["id"])

        assert activated == client.get(f"/releases/{made['id']}").json() | {"status": "active"}
        assert compared.stdout.splitlines() == ["- story@1", "The experts of both stand in another order."]
        assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
            [made["id"], "active"],
            [three_experts, "retired"],
        ]
        assert back.returncode == 0
        assert client.get(f"/releases/{three_experts}").json()["status"] == "active"

    def test_a_refusal_is_one_line_as_the_api_says_it(self, three_experts: str, cli: Cli) -> None:
        result = cli("releases", "activate", three_experts, "--if-active", "release-9")

        assert result.returncode == 1
        assert result.stderr == (
            f"Error: The active release is {three_experts}, not release-9 as expected: look at it, then try again.\n"
        )

    def test_exported_and_imported(self, three_experts: str, cli: Cli, tmp_path: Path, client: httpx.Client) -> None:
        wrote = cli("releases", "export", three_experts, "--out", "r.tar")
        imported = printed(cli("releases", "import", "r.tar", "--activate", "--json"))
        (tmp_path / "broken.tar").write_bytes((tmp_path / "r.tar").read_bytes()[:5000])
        broken = cli("releases", "import", "broken.tar")
        unknown = cli("releases", "export", "release-99")

        assert wrote.stdout == f"Wrote {three_experts} to r.tar\n"
        assert (tmp_path / "r.tar").read_bytes() == client.get(f"/releases/{three_experts}/export").content
        assert imported["digest"] == client.get(f"/releases/{three_experts}").json()["digest"]
        assert imported["status"] == "active"
        assert (broken.returncode, unknown.returncode) == (1, 1)
        assert "ends too early" in broken.stderr
        assert sorted(path.name for path in tmp_path.glob("*.tar*")) == ["broken.tar", "r.tar"]


class TestGaps:
    def test_listed_shown_merged_and_dismissed(
        self, make_gap: Callable[..., str], client: httpx.Client, cli: Cli
    ) -> None:
        first, second, third = (make_gap() for _ in range(3))

        listed = cli("gaps", "list")
        shown = cli("gaps", "show", first)
        merged = printed(cli("gaps", "merge", second, first, "--json"))
        dismissed = cli("gaps", "dismiss", third)
        again = cli("gaps", "dismiss", third)
        job = cli("gaps", "analyse", "--set", "min_cluster_size=5")

        assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [third, second, first]
        assert "law_article_0_expert" in shown.stdout
        assert shown.stdout.endswith("Article 4\n")
        assert (merged["id"], merged["num_prompts"]) == (first, 4)
        assert (dismissed.returncode, again.returncode) == (0, 1)
        assert "no longer open" in again.stderr
        assert client.get(f"/jobs/{job.stdout.strip()}").json()["spec"]["min_cluster_size"] == 5

    def test_closed_by_an_expert_of_a_teacher_or_of_files(
        self, make_gap: Callable[..., str], client: httpx.Client, cli: Cli, tmp_path: Path
    ) -> None:
        gap = make_gap()
        (tmp_path / "data.jsonl").write_text('{"prompt": "a?", "completion": "b"}\n' * 20)

        nobody = cli("gaps", "expert", gap, "--teacher", "stranger")
        foretold = cli("gaps", "expert", gap, "--teacher", "demo:law", "--set", "num_examples=100", "--dry-run")
        of_files = cli("gaps", "expert", gap, "--data", "data.jsonl", "--approve")
        again = cli("gaps", "expert", gap, "--teacher", "demo:law")

        assert (nobody.returncode, again.returncode) == (1, 1)
        assert "the teacher demo:law for 100 examples" in foretold.stdout
        spec = client.get(f"/jobs/{of_files.stdout.strip()}").json()["spec"]
        assert (spec["kind"], spec["gap"], spec["approval"]) == ("expert_creation", gap, True)
        assert of_files.stdout.strip() in again.stderr


class TestExperts:
    def test_imported_shown_and_retired(self, three_experts: str, cli: Cli, tmp_path: Path) -> None:
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"good")
        (tmp_path / "texts.txt").write_text("Some text of its domain, and then some more of it. " * 20)

        imported = printed(
            cli("experts", "import", "new", str(folder), "--exemplars", "texts.txt", "--domain", "news", "--json")
        )
        shown = cli("experts", "show", "new")
        retired = cli("experts", "retire", "new")
        names = [expert["name"] for expert in printed(cli("experts", "list", "--json"))["data"]]

        assert (imported["name"], imported["domain"], imported["versions"][0]["has_evidence"]) == ("new", "news", True)
        assert "news" in shown.stdout
        assert retired.stdout == "new is retired.\n"
        assert names == ["code", "math", "story"]

    def test_a_file_that_is_not_there_and_an_expert_that_is_needed(self, three_experts: str, cli: Cli) -> None:
        missing = cli("experts", "import", "new", "nowhere")
        needed = cli("experts", "retire", "math")

        assert (missing.returncode, needed.returncode) == (2, 1)
        assert missing.stderr.startswith("Error: nowhere/adapter_config.json cannot be read")
        assert "speaks in the active release" in needed.stderr


class TestJobs:
    def test_submitted_with_an_upload_and_settings_then_paused_resumed_and_cancelled(
        self, cli: Cli, tmp_path: Path, client: httpx.Client, storage: Storage
    ) -> None:
        (tmp_path / "train.jsonl").write_text('{"text": "a"}\n' * 3)
        (tmp_path / "job.json").write_text(json.dumps({"kind": "expert", "name": "x", "hyperparameters": {"rank": 4}}))

        submitted = cli(
            *("jobs", "submit", "job.json", "--upload", "training_file=train.jsonl"),
            *("--set", "name=chess", "--set", "hyperparameters.max_steps=60"),
        )
        job_id = submitted.stdout.strip()
        job = client.get(f"/jobs/{job_id}").json()
        states = [printed(cli("jobs", verb, job_id, "--json"))["status"] for verb in ("pause", "resume", "cancel")]
        again = cli("jobs", "cancel", job_id)
        listed = cli("jobs", "list", "--status", "cancelled")
        dry = printed(cli("jobs", "submit", "-", "--dry-run", "--json", stdin=json.dumps(job["spec"])))
        log = storage.root / "jobs" / job_id / "log.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text('{"at": "2026-11-21T12:00:00+00:00", "level": "info", "message": "job started"}\n')
        logged = cli("jobs", "logs", job_id)

        assert (job["spec"]["name"], job["spec"]["hyperparameters"]["rank"]) == ("chess", 4)
        assert job["spec"]["hyperparameters"]["max_steps"] == 60
        assert states == ["paused", "queued", "cancelled"]
        assert (again.returncode, "already ended" in again.stderr) == (1, True)
        assert job_id in listed.stdout
        assert (dry["object"], dry["files"]["training_file"]["num_examples"]) == ("job.dry_run", 3)
        assert "job started" in logged.stdout
        assert len(client.get("/jobs").json()["data"]) == 1

    def test_what_is_wrong_is_told_and_nothing_is_submitted(
        self, cli: Cli, client: httpx.Client, subtests: pytest.Subtests
    ) -> None:
        cases: list[tuple[tuple[str, ...], str, int, str]] = [
            (("jobs", "submit", "-"), "{", 2, "cannot be read as JSON"),
            (("jobs", "submit", "-"), "[]", 2, "not a JSON object"),
            (("jobs", "submit", "nowhere.json"), "", 2, "nowhere.json"),
            (("jobs", "submit", "--set", "kind"), "", 2, "FIELD=VALUE"),
            (("jobs", "submit", "--set", "kind=expert", "--set", "kind.x=1"), "", 2, "no fields"),
            (("jobs", "submit", "--set", "kind=nonsense"), "", 1, "kind"),
            (("jobs", "show", "job-0"), "", 1, "No job 'job-0'"),
        ]
        for arguments, stdin, code, word in cases:
            with subtests.test(" ".join(arguments)):
                result = cli(*arguments, stdin=stdin)

                assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
                assert word in result.stderr
        assert client.get("/jobs").json()["data"] == []

    def test_one_that_a_worker_looks_through_is_validating_and_can_be_cancelled(
        self, cli: Cli, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            job_id = jobs.create_job(session, RouterJobSpec()).id
            job_lease.claim_job(session, job_id, owner="w", lease_s=600, max_attempts=3)

        listed = cli("jobs", "list", "--status", "validating")
        cancelled = cli("jobs", "cancel", job_id)

        assert job_id in listed.stdout
        assert "validating, to cancel" in cancelled.stdout

    @pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 1)])
    def test_watching_ends_with_the_job_and_as_it_did(
        self, running_job: str, cli: Cli, sessions: sessionmaker[Session], status: JobStatus, code: int
    ) -> None:
        error = {"message": "The disk is full."} if code else None
        with sessions.begin() as session:
            progress = JobProgress(phase="training", step=3, total_steps=10, loss=1.5, seconds_left=7.0)
            job_lease.record_progress(session, running_job, owner="w", progress=progress)
            job_events.add_event(
                session, running_job, "Step 3 of 10.", type="metrics", data={"step": 3, "total_steps": 10}
            )
            job_lease.finish_job(session, running_job, owner="w", status=status, error=error)

        watched = cli("jobs", "watch", running_job)
        shown = cli("jobs", "show", running_job)

        assert watched.returncode == code
        assert "Step 3 of 10." in watched.stdout
        assert ("The disk is full." in watched.stderr) is bool(code)
        assert "3/10" in shown.stdout


class TestBrokenConnections:
    @pytest.fixture
    def watcher(self, running_job: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
        """Starts `jobs watch --json` on the job; ended at the end."""
        started: list[subprocess.Popen[str]] = []

        def start(url: str) -> subprocess.Popen[str]:
            command = [*COMMAND, "jobs", "watch", running_job, "--json"]
            process = subprocess.Popen(
                command, env=environment(url), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    def test_a_job_is_watched_through_a_restart_of_the_service_without_losing_or_repeating_anything(
        self,
        running_job: str,
        watcher: Callable[[str], subprocess.Popen[str]],
        app_settings: Settings,
        sessions: sessionmaker[Session],
    ) -> None:
        def happen(*messages: str) -> None:
            for message in messages:
                with sessions.begin() as session:
                    job_events.add_event(session, running_job, message)

        port = free_port()
        with served(build_app(app_settings), port=port) as url:
            process = watcher(url)
            # A watcher that hangs must fail the test, not the time limit of all tests.
            clock = threading.Timer(TIMEOUT_S, process.kill)
            clock.start()
            assert process.stdout is not None
            happen("one\u2028and a half", "two")
            seen: list[str] = []
            while "two" not in seen:
                seen.append(json.loads(process.stdout.readline())["message"])
        happen("three")
        with served(build_app(app_settings), port=port):
            happen("four")
            with sessions.begin() as session:
                job_lease.finish_job(session, running_job, owner="w", status=JobStatus.SUCCEEDED, result={})
            seen += [json.loads(line)["message"] for line in process.stdout]
            code = process.wait(TIMEOUT_S)
        clock.cancel()

        assert code == 0
        assert seen[-5:] == ["one\u2028and a half", "two", "three", "four", "The job succeeded."]
        assert len(seen) == len(set(seen))


class TestOtherCommands:
    def test_files_are_uploaded_and_listed(self, cli: Cli, tmp_path: Path, storage: Storage) -> None:
        (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')

        file_id = cli("files", "upload", "train.jsonl").stdout.strip()
        listed = cli("files", "list")

        assert storage.upload(file_id).read_text() == '{"text": "a"}\n'
        assert listed.stdout.splitlines()[1].split()[:4] == [file_id, "train.jsonl", "14", "B"]

    def test_generate_writes_the_answer_and_says_who_wrote_it(self, three_experts: str, cli: Cli) -> None:
        streamed = cli("generate", "-", "--max-new-tokens", "4", stdin="12 + 5 =")
        whole = printed(cli("generate", "12 + 5 =", "--expert", "math", "--max-new-tokens", "4", "--json"))
        refused = cli("generate", "x", "--expert", "nobody")

        assert streamed.stdout == f"{whole['generated_text']}\n"
        assert streamed.stderr.startswith(f"[{three_experts}: ")
        assert whole["routing"]["attribution"][0]["expert"] == "math"
        assert (refused.returncode, "nobody" in refused.stderr) == (1, True)

    def test_garbage_is_listed_before_it_is_removed(self, cli: Cli) -> None:
        assert "0 B would be removed with --remove." in cli("storage", "gc").stdout
        assert printed(cli("storage", "gc", "--remove", "--json"))["dry_run"] is False

    def test_an_address_where_nothing_answers_has_an_exit_code_of_its_own(self, cli: Cli) -> None:
        result = cli("releases", "list", url=f"http://127.0.0.1:{free_port()}")

        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr.startswith("Error: Nothing answers at")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_shell_completes_names_of_what_is_there(self, three_experts: str, router_url: str, shell: str) -> None:
        variables = {
            "_ADAPTIVE_MOE_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": "adaptive-moe releases show rel",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "COMP_WORDS": "adaptive-moe releases show rel",
            "COMP_CWORD": "3",
        }
        code = "from services.command_line.main import app; app(prog_name='adaptive-moe')"

        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment(router_url), **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

        assert three_experts in result.stdout, result.stderr


class TestTraces:
    def test_imported_shown_analysed_and_deleted(
        self, cli: Cli, client: httpx.Client, app_settings: Settings, sessions: sessionmaker[Session], tmp_path: Path
    ) -> None:
        folder = tmp_path / "experiment" / "domain-1-code"
        folder.mkdir(parents=True)
        lines = [route(f"r{number}", position, [number, 7]) for number in range(4) for position in range(6)]
        (folder / "moe_routes.jsonl").write_bytes(routes(lines))
        (folder / "elsewhere").symlink_to("/etc/passwd")

        submitted = printed(cli("traces", "import", "experiment", "--set", "num_experts=8", "--json"))
        trace_id = submitted["trace"]["id"]
        refused = cli("traces", "delete", trace_id)
        runner = JobRunner(
            settings=app_settings,
            sessions=sessions,
            storage=Storage(app_settings.storage.root),
            owner="test",
            shutting_down=lambda: False,
        )
        runner.run(submitted["job"]["id"])
        listed = cli("traces", "list")
        shown = cli("traces", "show", trace_id)
        overview = cli("traces", "analyse", trace_id)
        figure = printed(cli("traces", "analyse", trace_id, "frequency", "--layer", "0"))
        written = cli("traces", "report", trace_id, "--out", "report.html")
        live = printed(cli("traces", "analyse", "--json"))
        deleted = cli("traces", "delete", trace_id)

        assert refused.returncode == 1
        assert "is at work" in refused.stderr
        assert (trace_id in listed.stdout, "moe_routes" in listed.stdout) == (True, True)
        assert "8 (top 2)" in shown.stdout
        assert "info: phase_unknown" in shown.stdout
        assert overview.returncode == 0, overview.stderr
        assert "entropy (bits)" in overview.stdout
        assert figure["data"]["tokens_by_domain"] == [24]
        assert written.returncode == 0, written.stderr
        assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
        assert live["num_requests"] == 0
        assert deleted.stdout == f"{trace_id} is deleted.\n"
        assert client.get("/traces").json()["data"] == []

    def test_what_is_not_there_is_told(self, cli: Cli) -> None:
        result = cli("traces", "import", "nowhere.bin")

        assert (result.returncode, "nowhere.bin is not there" in result.stderr) == (2, True)
