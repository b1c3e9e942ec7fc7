"""A trace job on the demo as it is first started: its own domains, its experts and the base model behind them."""

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.local_stack.bootstrap import bootstrap_demo
from services.shared.config import Settings
from services.shared.jobs import create_job, find_job
from services.shared.schemas.trace import TraceJobSpec
from services.shared.storage import Storage
from services.shared.traces_registry import create_trace, find_trace, trace_id_of
from services.shared.vocabulary import JobStatus
from services.traces.choices import NOBODY
from services.traces.table import Trace
from services.trainer_worker.demo.domains import DEMO_DOMAINS
from services.trainer_worker.job_runner import JobRunner


@pytest.fixture
def settings(settings: Settings, demo_dir: Path) -> Settings:
    return settings.model_copy(update={"base_model": str(demo_dir / "base")})


class TestDemo:
    def test_answers_items_of_its_own_domains(
        self, settings: Settings, runner: JobRunner, sessions: sessionmaker[Session]
    ) -> None:
        bootstrap_demo(settings)
        spec = TraceJobSpec(prompts_per_domain=2, max_tokens=4)
        with sessions.begin() as session:
            job_id = create_job(session, spec).id
            create_trace(session, job_id=job_id, name=spec.named_trace())

        runner.run(job_id)

        with sessions() as session:
            job = find_job(session, job_id)
            assert job.status == JobStatus.SUCCEEDED, job.error
            row = find_trace(session, trace_id_of(job_id))
        assert row.digest is not None
        trace = Trace(Storage(settings.storage.root).artifact(row.digest))
        layer = trace.layer(0)
        assert trace.description.model == "release-1"
        assert trace.description.about["prompts"] == "demo"
        assert trace.description.domains == DEMO_DOMAINS
        assert sorted(trace.description.experts[:-1]) == sorted(DEMO_DOMAINS)
        assert trace.description.experts[-1] == "base"
        assert (trace.layers, layer.num_experts, layer.num_sequences) == ([0], 6, 10)
        assert layer.weights is not None
        np.testing.assert_allclose(layer.weights.sum(axis=1), 1.0, atol=1e-5)
        first = [trace.description.experts[expert] for expert in layer.experts[:, 0]]
        own = [trace.sequences[number].domain for number in layer.sequences]
        assert (layer.experts[:, 0] != NOBODY).all()
        assert np.mean([one == other for one, other in zip(first, own, strict=True)]) > 0.5
