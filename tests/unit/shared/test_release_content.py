"""The one name of what a release serves."""

from dataclasses import replace

import pytest

from services.shared.release_content import ReleaseContent

CONTENT = ReleaseContent(
    base_fingerprint="f" * 64,
    router="a" * 64,
    graph=None,
    calibration=None,
    experts=(("math", "1" * 64), ("code", "2" * 64)),
)


def test_equal_content_has_an_equal_digest() -> None:
    assert CONTENT.digest == replace(CONTENT).digest
    assert len(CONTENT.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"base_fingerprint": "e" * 64},
        {"router": "b" * 64},
        {"graph": "c" * 64},
        {"calibration": "c" * 64},
        {"experts": CONTENT.experts[::-1]},
        {"experts": CONTENT.experts[:1]},
        {"experts": (("math", "3" * 64), CONTENT.experts[1])},
        {"experts": (("sums", "1" * 64), CONTENT.experts[1])},
    ],
    ids=["base", "router", "graph", "calibration", "order", "fewer", "another version", "another name"],
)
def test_whatever_changes_the_answers_changes_the_digest(change: dict[str, object]) -> None:
    assert replace(CONTENT, **change).digest != CONTENT.digest  # type: ignore[arg-type]


def test_graph_and_calibration_are_not_taken_for_each_other() -> None:
    assert replace(CONTENT, graph="c" * 64).digest != replace(CONTENT, calibration="c" * 64).digest


def test_artifacts_are_named_once_each() -> None:
    shared = replace(CONTENT, graph="c" * 64, experts=(("math", "1" * 64), ("sums", "1" * 64)))

    assert shared.artifacts == ("a" * 64, "c" * 64, "1" * 64)
