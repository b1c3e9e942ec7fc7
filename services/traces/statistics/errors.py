"""What keeps a figure from being made."""


class NoSuchFigure(Exception):
    """There is nothing to make it of; the message says what it would take."""
