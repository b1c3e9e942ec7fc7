"""Names that nobody knows leave no trace in a replica's memory."""

from pathlib import Path

from tests.integration.expert_service.serving import serving
from tests.memory import assert_leaves_no_trace


class TestUnknownDigests:
    def test_leave_memory_flat(self, shared_material: Path, tmp_path: Path) -> None:
        base_model = shared_material / "models" / "stories260K-hf"
        with serving(base_model, tmp_path) as served, served.client as client:

            def ask(number: int) -> None:
                digest = f"{number:064x}"
                experts = [{"name": f"e{number}", "version": 1, "digest": digest}]
                plan = {
                    "mode": "fixed",
                    "experts": experts,
                    "candidates": [f"e{number}"],
                    "weights": {f"e{number}": 1.0},
                }
                assert client.post("/sequences", json=served.body("Once", plan)).status_code == 404

            assert_leaves_no_trace(ask, num_asked=1000)
