"""The whole command line: the local stack's commands, and those that speak to a router service anywhere."""

from services.command_line.evaluate_command import evaluate
from services.command_line.expert_commands import experts_app
from services.command_line.file_commands import files_app
from services.command_line.gap_commands import gaps_app
from services.command_line.generate_command import generate
from services.command_line.job_commands import jobs_app
from services.command_line.release_commands import releases_app
from services.command_line.storage_commands import storage_app
from services.command_line.trace_commands import traces_app
from services.local_stack.cli import app

__all__ = ["app"]

app.command()(generate)
app.command()(evaluate)
app.add_typer(jobs_app, name="jobs")
app.add_typer(experts_app, name="experts")
app.add_typer(files_app, name="files")
app.add_typer(gaps_app, name="gaps")
app.add_typer(releases_app, name="releases")
app.add_typer(storage_app, name="storage")
app.add_typer(traces_app, name="traces")
