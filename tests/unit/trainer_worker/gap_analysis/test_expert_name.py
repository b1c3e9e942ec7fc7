"""Names proposed for experts: the requirements' rule, whatever people have written."""

import random
import re

import pytest

from services.shared.vocabulary import NAME_PATTERN
from services.trainer_worker.gap_analysis.expert_name import MAX_PROPOSED_LENGTH, propose_name

LETTERS = "abzABZ09 _-./$&äßñ字😀\x00\n"


@pytest.mark.parametrize(
    ("domain", "words", "name"),
    [
        ("law", ["article", "clause", "party"], "law_article_clause_expert"),
        ("Law & Order", ["Article"], "law_order_article_expert"),
        ("law", ["law", "clause"], "law_clause_expert"),
        ("unknown", ["e4", "nf3"], "e4_nf3_expert"),
        ("unknown", [], "unknown_0a1b_expert"),
        ("", ["字"], "unknown_0a1b_expert"),
        ("Köche", ["Crème-brûlée"], "koche_creme_brulee_expert"),
        ("x" * 80, ["word"], "x" * 43 + "_expert"),
        ("y" * 42, ["word"], "y" * 42 + "_expert"),
    ],
)
def test_the_rule(domain: str, words: list[str], name: str) -> None:
    assert propose_name(domain, words, taken=(), otherwise="0a1b") == name


def test_every_name_is_valid_short_and_new() -> None:
    rng = random.Random(0)

    def text(most: int) -> str:
        return "".join(rng.choices(LETTERS, k=rng.randrange(most)))

    taken: set[str] = set()
    for _ in range(2000):
        name = propose_name(text(60), [text(12) for _ in range(rng.randrange(4))], taken=taken, otherwise="0a1b")

        assert re.fullmatch(NAME_PATTERN, name), name
        assert len(name) <= MAX_PROPOSED_LENGTH
        assert name.endswith("_expert")
        assert "__" not in name
        assert name not in taken
        taken.add(name)


def test_a_taken_name_gets_a_number_and_stays_short() -> None:
    first = propose_name("z" * 60, [], taken=(), otherwise="0")
    second = propose_name("z" * 60, [], taken={first}, otherwise="0")
    third = propose_name("z" * 60, [], taken={first, second}, otherwise="0")

    assert (second, third) == ("z" * 41 + "_2_expert", "z" * 41 + "_3_expert")
