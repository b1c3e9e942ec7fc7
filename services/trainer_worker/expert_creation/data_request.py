"""What examples are wanted of a teacher, or of a person."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataRequest:
    """The kind of examples in words, the domain's name, and a few in the form wanted, as (prompt, completion)."""

    kind: str
    domain: str
    examples: tuple[tuple[str, str], ...]
