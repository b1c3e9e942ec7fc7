"""`adaptive-moe up`: one stack in one state folder, from start to end."""

import asyncio
from collections.abc import Callable

from rich.console import Console

from services.local_stack.process_records import ProcessRecords
from services.local_stack.stack import Stack, plan_stack
from services.local_stack.state_folder import StateFolder
from services.local_stack.supervisor import Supervisor
from services.local_stack.terminal import TerminalReporter
from services.shared.config import Settings


def run_stack(state: StateFolder, *, port: int | None, num_replicas: int, show_logs: bool) -> None:
    """Run until stopped by a signal. Raises StackError with the reason when the stack cannot start."""
    settings = Settings()

    def plan() -> Stack:
        return plan_stack(settings, state, port=port, num_replicas=num_replicas)

    supervise(state, plan=plan, show_logs=show_logs)


def supervise(state: StateFolder, *, plan: Callable[[], Stack], show_logs: bool = False) -> None:
    """Hold the state folder, end what an earlier run left in it, and run the stack that `plan` makes after that."""
    console = Console()
    with state.held():
        records = ProcessRecords(state.process_records)
        for name in records.sweep():
            console.print(f"Ended a process that an earlier run left: {name}", highlight=False)
        stack = plan()
        state.write_endpoints(stack.endpoints)
        console.print(f"Starting Adaptive MoE in {state.root}", highlight=False, soft_wrap=True)
        for note in stack.notes:
            console.print(f"  {note}", highlight=False)
        reporter = TerminalReporter(console, stack.endpoints, show_logs=show_logs)
        asyncio.run(Supervisor(stack.programs, logs=state.logs, records=records, reporter=reporter).run())
