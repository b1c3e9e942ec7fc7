"""Law: contract clauses with questions about who owes what by when. Kept out of base and experts."""

from __future__ import annotations

import random

from services.trainer_worker.demo.domains.item import Domain, Item, ends_with_value

_PARTIES = (
    ("the Lessor", "the Lessee"),
    ("the Seller", "the Buyer"),
    ("the Licensor", "the Licensee"),
    ("the Employer", "the Employee"),
    ("the Lender", "the Borrower"),
    ("the Insurer", "the Insured"),
    ("the Contractor", "the Client"),
    ("the Carrier", "the Shipper"),
)
_DUTIES = (
    "pay the agreed sum",
    "deliver the goods",
    "return all documents",
    "repair the premises",
    "keep the records confidential",
    "give notice in writing",
    "provide proof of insurance",
    "remedy any defect",
    "reimburse reasonable expenses",
    "appoint an arbitrator",
)
_EVENTS = (
    "the date of signature",
    "receipt of the invoice",
    "termination of this Agreement",
    "the first default",
    "delivery of notice",
    "the closing date",
)
_SOURCES = (
    "Pursuant to Article {n}",
    "Under Section {n} hereof",
    "Notwithstanding Clause {n}",
    "Subject to Schedule {n}",
)
_UNITS = ("business days", "days", "months", "weeks")


def _clause(rng: random.Random) -> tuple[str, dict[str, str]]:
    debtor, creditor = rng.sample(rng.choice(_PARTIES), 2)
    source = rng.choice(_SOURCES).format(n=rng.randint(1, 40))
    values = {
        "debtor": debtor,
        "creditor": creditor,
        "duty": rng.choice(_DUTIES),
        "period": f"{rng.randint(2, 60)} {rng.choice(_UNITS)}",
        "event": rng.choice(_EVENTS),
    }
    text = "{debtor} shall {duty} to the satisfaction of {creditor} within {period} of {event}".format(**values)
    penalty = rng.choice(("", ", failing which this Agreement shall be void", ", time being of the essence"))
    return f"WHEREAS the parties agree: {source}, {text}{penalty}.", values


def _question(rng: random.Random, values: dict[str, str]) -> tuple[str, str, str]:
    return rng.choice(
        [
            ("Who is the obligor?", f"The obligor is {values['debtor']}.", values["debtor"]),
            ("Who is the obligee?", f"The obligee is {values['creditor']}.", values["creditor"]),
            ("What is the obligation?", f"The obligation is to {values['duty']}.", values["duty"]),
            ("What is the time limit?", f"The time limit is {values['period']}.", values["period"]),
            ("When does time begin to run?", f"Time runs from {values['event']}.", values["event"]),
        ]
    )


def _compose(rng: random.Random) -> Item:
    clause, values = _clause(rng)
    question, answer, value = _question(rng, values)
    return Item(
        prompt=f"{clause}\nHELD: {question}\n",
        completion=f"{answer}\n",
        check={"value": value},
        template=f"{question}/{values['duty']}",
    )


def _is_correct(item: Item, answer: str) -> bool:
    return ends_with_value(answer, item.check["value"])


DOMAIN = Domain(
    name="law",
    description="Contract clauses with questions about obligor, duty, time limit and start of time.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=False,
)
