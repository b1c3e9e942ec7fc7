"""Who writes examples: an endpoint that the operator has named, or a generator of the demo."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from services.shared.config import Settings
from services.shared.errors import JobFailed
from services.shared.vocabulary import DEMO_TEACHER_PREFIX
from services.trainer_worker.expert_creation.data_request import DataRequest

if TYPE_CHECKING:
    from services.trainer_worker.expert_creation.endpoint_teacher import EndpointTeacher


class Teacher(Protocol):
    """Answers are texts that hold examples as JSON lines, or should: nothing of them is believed."""

    @property
    def examples_per_request(self) -> int:
        """How many it is asked for at once."""

    def ask(self, request: DataRequest, *, count: int, number: int) -> str:
        """The answer to the `number`th request of a job, for `count` examples. Raises JobFailed where none comes, and
        TrainingStopped."""


def teacher_of(name: str, settings: Settings, *, should_stop: Callable[[], bool]) -> Teacher:
    """The teacher of that name. Raises JobFailed for one that this worker does not know."""
    if name.startswith(DEMO_TEACHER_PREFIX):
        from services.trainer_worker.expert_creation.demo_teacher import DemoTeacher

        return DemoTeacher.of(name.removeprefix(DEMO_TEACHER_PREFIX))
    return configured_endpoint(name, settings, should_stop=should_stop)


def configured_endpoint(name: str, settings: Settings, *, should_stop: Callable[[], bool]) -> "EndpointTeacher":
    """The endpoint of that name in the settings. Raises JobFailed for one that this worker does not know."""
    configured = settings.teachers.get(name)
    if configured is None:
        known = ", ".join(sorted(settings.teachers)) or "none"
        raise JobFailed(
            f"This worker has no teacher {name!r} (it knows: {known}): give it the same `teachers` settings as the "
            "router service, or name another.",
            param="teacher",
            code="unknown_teacher",
        )
    from services.trainer_worker.expert_creation.endpoint_teacher import EndpointTeacher

    return EndpointTeacher(name, configured, should_stop=should_stop)
