"""A newcomer's first hour: upload text, train an expert over HTTP, watch it join, and see who wrote what."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.trainer_worker.demo.domains import DOMAINS
from tests.e2e.conftest import PROJECT
from tests.e2e.journey import events, generate, shares, submit, upload, wait_for, wait_until_served

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NEWCOMER = next(name for name, domain in DOMAINS.items() if not domain.in_demo)
"""A domain that neither the base model nor any expert of the demo has seen."""


def test_the_readmes_code_for_openais_client_runs(demo_stack: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    section = (PROJECT / "README.md").read_text(encoding="utf-8").partition("## With the OpenAI client")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}

    exec(code.replace("http://127.0.0.1:8000", str(demo_stack.base_url).rstrip("/")), names)
    names["client"].close()

    models, _, answers = capsys.readouterr().out.partition("\n")
    assert {"adaptive-moe", "base", "base:creative"} <= set(json.loads(models.replace("'", '"')))
    assert "'expert': 'math'" in answers
    assert names["chunk"].choices[0].finish_reason in {"stop", "length"}
    assert names["chunk"].choices[0].routing["attribution"][0]["expert"] == "creative"


def test_upload_train_release_generate_and_read_the_log(demo_stack: httpx.Client) -> None:
    domain = DOMAINS[NEWCOMER]
    before = demo_stack.get("/releases").json()["data"]
    active_before = next(release["id"] for release in before if release["status"] == "active")
    lines = [
        json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in domain.generate(1, 400, "train")
    ]
    held_out = domain.generate(2, 4, "held_out")

    file_id = upload(demo_stack, f"{NEWCOMER}.jsonl", "\n".join(lines).encode())
    job_id = submit(
        demo_stack,
        {
            "kind": "expert",
            "name": NEWCOMER.replace("_", "-"),
            "domain": NEWCOMER,
            "training_file": file_id,
            "hyperparameters": {"max_steps": 60, "learning_rate": 2e-3, "max_length": 128},
            "add_to_release": True,
            "activate": True,
        },
    )
    history = events(demo_stack, job_id)
    job = wait_for(demo_stack, job_id)

    assert job["status"] == "succeeded", job["error"]
    assert job["progress"]["step"] == job["progress"]["total_steps"] == 60
    assert any("loss" in event["data"] for event in history if event["type"] == "metrics")
    releases = demo_stack.get("/releases").json()["data"]
    active = next(release["id"] for release in releases if release["status"] == "active")
    assert active != active_before
    wait_until_served(demo_stack, active)

    answer = generate(demo_stack, held_out[0].prompt, max_new_tokens=24, details=True)
    by_expert = shares(answer)

    assert answer["routing"]["release"] == active
    assert max(by_expert, key=by_expert.__getitem__) == NEWCOMER.replace("_", "-")
    assert sum(by_expert.values()) == pytest.approx(1.0, abs=1e-6)
    request = demo_stack.get(f"/requests/{answer['routing']['request_id']}").json()
    assert request["release"] == active
    assert [token["id"] for token in request["tokens"] if token["generated"]] == [
        token["id"] for token in answer["details"]["tokens"]
    ]


def test_openais_client_uploads_fine_tunes_and_asks_what_came_of_it(demo_stack: httpx.Client) -> None:
    items = DOMAINS["math"].generate(8, 160, "train")
    lines = [json.dumps({"prompt": item.prompt, "completion": item.completion}) for item in items]
    address = str(demo_stack.base_url).rstrip("/")

    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused") as ai:
        uploaded = ai.files.create(file=("sums.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
        job = ai.fine_tuning.jobs.create(
            model="base",
            training_file=uploaded.id,
            suffix="Fresh sums",
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        )
        wait_for(demo_stack, job.id.removeprefix("ft"))
        done = ai.fine_tuning.jobs.retrieve(job.id)
        assert done.status == "succeeded", done.error
        assert done.fine_tuned_model is not None
        completion = ai.completions.create(
            model=done.fine_tuned_model, prompt=items[0].prompt, max_tokens=16, temperature=0
        )
        checkpoints = list(ai.fine_tuning.jobs.checkpoints.list(job.id))
        early = checkpoints[-1].fine_tuned_model_checkpoint
        earlier = ai.completions.create(model=early, prompt=items[0].prompt, max_tokens=16, temperature=0)
        told = list(ai.fine_tuning.jobs.list_events(job.id, limit=100))
        models = {model.id for model in ai.models.list()}
        ai.files.delete(uploaded.id)

    assert done.fine_tuned_model.startswith("ft:base:fresh-sums:")
    assert done.fine_tuned_model in models
    for answer in (completion, earlier):
        assert (answer.choices[0].model_extra or {})["routing"]["attribution"][0]["expert"] == "fresh-sums"
    assert 2 <= len(checkpoints) <= 3
    assert told[0].message == "The job succeeded."
    losses = [event.data["valid_loss"] for event in told if event.type == "metrics" and "valid_loss" in event.data]
    assert losses[0] < losses[-1]


def test_old_domains_are_still_answered_by_their_own_experts(demo_stack: httpx.Client) -> None:
    for name, domain in DOMAINS.items():
        if not domain.in_demo or name == "mixed":
            continue
        by_expert = shares(generate(demo_stack, domain.generate(3, 1, "held_out")[0].prompt, max_new_tokens=24))

        assert max(by_expert, key=by_expert.__getitem__) == name


def test_one_expert_a_set_and_none_can_be_forced(demo_stack: httpx.Client) -> None:
    prompt = DOMAINS["math"].generate(4, 1, "held_out")[0].prompt

    one = shares(generate(demo_stack, prompt, adapter_id="code", max_new_tokens=8))
    some = shares(generate(demo_stack, prompt, experts={"code": 0.5, "math": 0.25}, max_new_tokens=8))
    none = shares(generate(demo_stack, prompt, adapter_id="base", max_new_tokens=8))

    assert one["code"] == pytest.approx(1.0)
    assert some["code"] > some["math"] > 0
    assert none == {"base": pytest.approx(1.0)}


def run_command(stack: httpx.Client, *arguments: str, stdin: str = "") -> str:
    """What `adaptive-moe` with these arguments prints, speaking to `stack`."""
    command = [sys.executable, "-m", "services.command_line", *arguments]
    environment = {**os.environ, "AMOE_URL": str(stack.base_url), "COLUMNS": "200"}
    result = subprocess.run(
        command, input=stdin, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, f"{arguments}: {result.stderr}"
    return result.stdout


def test_a_release_is_trained_moved_and_taken_back_from_the_command_line(
    demo_stack: httpx.Client, tmp_path: Path
) -> None:
    run = partial(run_command, demo_stack)
    archive, lines = str(tmp_path / "release.tar"), tmp_path / "sums.jsonl"
    items = DOMAINS["math"].generate(5, 40, "train")
    examples = [{"prompt": item.prompt, "completion": item.completion} for item in items]
    lines.write_text("".join(json.dumps(example) + "\n" for example in examples))
    prompt = DOMAINS["code"].generate(6, 1, "held_out")[0].prompt
    releases = json.loads(run("releases", "list", "--json"))["data"]
    before = next(release for release in releases if release["status"] == "active")

    job = {"kind": "expert", "name": "sums", "hyperparameters": {"max_steps": 3, "max_length": 64}}
    watched = run("jobs", "submit", "-", "--upload", f"training_file={lines}", "--watch", stdin=json.dumps(job))
    names = [expert["name"] for expert in json.loads(run("experts", "list", "--json"))["data"]]
    scored_before = demo_stack.post("/route", json={"inputs": prompt}).json()["tokens"]
    run("releases", "export", before["id"], "--out", archive)
    imported = json.loads(run("releases", "import", archive, "--activate", "--json"))
    scored_after = demo_stack.post("/route", json={"inputs": prompt}).json()
    answer = run("generate", prompt, "--max-new-tokens", "8")
    back = json.loads(run("releases", "rollback", "--if-active", imported["id"], "--json"))

    assert "The job succeeded." in watched
    assert "sums" in names
    assert (imported["digest"], scored_after["release"]) == (before["digest"], imported["id"])
    assert scored_after["tokens"] == scored_before
    assert answer.strip() == generate(demo_stack, prompt, max_new_tokens=8)["generated_text"].strip()
    assert back["id"] == before["id"]
    assert "0 B would be removed" in run("storage", "gc")


def test_evaluate_the_active_release_and_read_the_report(demo_stack: httpx.Client, tmp_path: Path) -> None:
    names, report = ("code", "math"), tmp_path / "report"
    for name in names:
        lines = [json.dumps({"text": item.text}) + "\n" for item in DOMAINS[name].generate(3, 24, "held_out")]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    small = {"max_documents": 8, "max_switching_documents": 8, "max_tokens": 64, "thresholds": [0.1], "top_ks": []}
    settings = {**small, "seeds": [0], "without_each": False}

    run_command(
        demo_stack,
        "evaluate",
        *(f"{name}={tmp_path / name}.jsonl" for name in names),
        *(part for field, value in settings.items() for part in ("--set", f"{field}={json.dumps(value)}")),
        *("--out", str(report)),
    )

    job = demo_stack.get("/jobs?kind=evaluation&limit=1").json()["data"][0]
    assert {"report.md", "report.json", "kept.png"} <= {path.name for path in (report / "report").iterdir()}
    assert (report / "report" / "report.md").read_text().startswith(f"# Evaluation of {job['result']['release']}")
    release = demo_stack.get(f"/releases/{job['result']['release']}").json()
    assert release["evaluation"] == job["result"]["evaluation"]
    assert set(release["evaluation"]["losses"]) == set(names)
    assert job["result"]["figures"]["kept_later"]["mean"] > 0.8
