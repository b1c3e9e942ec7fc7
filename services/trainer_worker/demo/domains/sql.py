"""SQL: one-line requests to be written as queries. Kept out of base and experts."""

from __future__ import annotations

import random

from services.trainer_worker.demo.domains.item import Domain, Item

_TABLES: dict[str, tuple[str, ...]] = {
    "customers": ("name", "city", "age", "balance"),
    "orders": ("customer_id", "amount", "status", "year"),
    "employees": ("name", "salary", "department", "age"),
    "products": ("title", "price", "stock", "category"),
    "flights": ("origin", "destination", "distance", "delay"),
    "invoices": ("client", "total", "paid", "month"),
    "sensors": ("room", "temperature", "humidity", "hour"),
    "tickets": ("owner", "priority", "queue", "days"),
    "songs": ("artist", "length", "album", "plays"),
    "players": ("team", "goals", "number", "minutes"),
}
_COMPARISONS = {"above": ">", "below": "<", "equal to": "=", "at least": ">=", "at most": "<="}
_AGGREGATES = {"average": "AVG", "largest": "MAX", "smallest": "MIN", "total": "SUM"}


def _request(rng: random.Random) -> tuple[str, str, str]:
    table, columns = rng.choice(list(_TABLES.items()))
    shown, tested = rng.sample(columns, 2)
    words, sign = rng.choice(list(_COMPARISONS.items()))
    aggregate, function = rng.choice(list(_AGGREGATES.items()))
    limit, value = rng.randint(2, 50), rng.randint(1, 400)
    requests = {
        "filter": (
            f"show {shown} where {tested} is {words} {value}",
            f"SELECT {shown} FROM {table} WHERE {tested} {sign} {value};",
        ),
        "count": (
            f"count rows where {tested} is {words} {value}",
            f"SELECT COUNT(*) FROM {table} WHERE {tested} {sign} {value};",
        ),
        "aggregate": (
            f"{aggregate} {shown} where {tested} is {words} {value}",
            f"SELECT {function}({shown}) FROM {table} WHERE {tested} {sign} {value};",
        ),
        "group": (
            f"{aggregate} {shown} for each {tested}, at most {limit} rows",
            f"SELECT {tested}, {function}({shown}) FROM {table} GROUP BY {tested} LIMIT {limit};",
        ),
        "top": (
            f"first {limit} rows of {shown}, highest {tested} first",
            f"SELECT {shown} FROM {table} ORDER BY {tested} DESC LIMIT {limit};",
        ),
        "delete": (
            f"delete rows where {tested} is {words} {value}",
            f"DELETE FROM {table} WHERE {tested} {sign} {value};",
        ),
    }
    kind = rng.choice(list(requests))
    text, query = requests[kind]
    return f"-- {table}({', '.join(columns)})\n-- {text}\n", query, f"{kind}/{table}"


def _compose(rng: random.Random) -> Item:
    prompt, query, template = _request(rng)
    return Item(prompt=prompt, completion=f"{query}\n", check={"query": query}, template=template)


def _normalised(query: str) -> str:
    return " ".join(query.strip().rstrip(";").casefold().split())


def _is_correct(item: Item, answer: str) -> bool:
    statement = answer.split(";", maxsplit=1)[0]
    return _normalised(statement) == _normalised(item.check["query"])


DOMAIN = Domain(
    name="sql",
    description="Requests against small tables, written as one SQL statement.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=False,
)
