"""The database's clock: the one by which leases run, whatever the clocks of workers say."""

from typing import Final

from sqlalchemy import func

NOW: Final = func.clock_timestamp()
"""The moment of the statement, not of its transaction."""
