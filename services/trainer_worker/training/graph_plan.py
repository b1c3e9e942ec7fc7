"""How a cooperation graph is trained and judged."""

from dataclasses import dataclass

from services.shared.schemas.cooperation_graph import JointPart


@dataclass(frozen=True)
class GraphPlan:
    """Numbers of one study. The names are those of the job's specification."""

    num_steps: int = 60
    batch_size: int = 8
    length: int = 192
    learning_rate: float = 0.02
    l1: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_test_documents: int = 128
    num_epochs: int = 1
    """The graph is kept so often, evenly over the steps, for pictures."""
    l1_sweep: tuple[float, ...] = ()
    """Other weights of the penalty to learn graphs under."""
    top_ks: tuple[int, ...] = ()
    """Experts per token at which a graph is learned and held against none."""
    controls: bool = True
    joint: tuple[JointPart, ...] = ()
    """What is trained together with a graph, beside the same training without one."""
    router_learning_rate: float = 0.05
    expert_learning_rate: float = 5e-4

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all networks of all seeds."""
        per_seed = 1 + len(self.l1_sweep) + len(self.top_ks) + int(self.controls) + 2 * bool(self.joint)
        return per_seed * self.num_steps * len(self.seeds)
