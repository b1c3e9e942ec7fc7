"""Chess notation: openings as move lists, questions about what was played. Kept out of base and experts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.trainer_worker.demo.domains.item import Domain, Item, ends_with_value

_PIECES = {"N": "knight", "B": "bishop", "Q": "queen", "K": "king", "R": "rook"}
_OPENINGS: dict[str, str] = {
    "Italian Game": "e4 e5 Nf3 Nc6 Bc4 Bc5 c3 Nf6 d3 d6",
    "Ruy Lopez": "e4 e5 Nf3 Nc6 Bb5 a6 Ba4 Nf6 c3 Be7",
    "Scotch Game": "e4 e5 Nf3 Nc6 d4 exd4 Nxd4 Nf6 Nc3 Bb4",
    "Petrov Defence": "e4 e5 Nf3 Nf6 Nxe5 d6 Nf3 Nxe4 d4 d5",
    "Vienna Game": "e4 e5 Nc3 Nf6 f4 d5 fxe5 Nxe4 Nf3 Be7",
    "King's Gambit": "e4 e5 f4 exf4 Nf3 g5 h4 g4 Ne5 Nf6",
    "Sicilian Defence": "e4 c5 Nf3 d6 d4 cxd4 Nxd4 Nf6 Nc3 a6",
    "French Defence": "e4 e6 d4 d5 Nc3 Nf6 Bg5 Be7 e5 Nd7",
    "Caro-Kann Defence": "e4 c6 d4 d5 Nc3 dxe4 Nxe4 Bf5 Ng3 Bg6",
    "Scandinavian Defence": "e4 d5 exd5 Qxd5 Nc3 Qa5 d4 Nf6 Nf3 c6",
    "Pirc Defence": "e4 d6 d4 Nf6 Nc3 g6 f4 Bg7 Nf3 c5",
    "Alekhine Defence": "e4 Nf6 e5 Nd5 d4 d6 Nf3 Bg4 Be2 e6",
    "Queen's Gambit": "d4 d5 c4 e6 Nc3 Nf6 Bg5 Be7 e3 c6",
    "Slav Defence": "d4 d5 c4 c6 Nf3 Nf6 Nc3 dxc4 a4 Bf5",
    "King's Indian Defence": "d4 Nf6 c4 g6 Nc3 Bg7 e4 d6 Nf3 e5",
    "Nimzo-Indian Defence": "d4 Nf6 c4 e6 Nc3 Bb4 e3 b6 Bd3 Bb7",
    "Gruenfeld Defence": "d4 Nf6 c4 g6 Nc3 d5 cxd5 Nxd5 e4 Nxc3",
    "Dutch Defence": "d4 f5 g3 Nf6 Bg2 g6 Nf3 Bg7 c4 d6",
    "London System": "d4 d5 Bf4 Nf6 e3 c5 c3 Nc6 Nd2 e6",
    "English Opening": "c4 e5 Nc3 Nf6 g3 d5 cxd5 Nxd5 Bg2 Nb6",
    "Reti Opening": "Nf3 d5 c4 e6 g3 Nf6 Bg2 Be7 b3 c6",
    "Bird Opening": "f4 d5 Nf3 g6 e3 Bg7 Be2 Nf6 d3 c5",
}


@dataclass(frozen=True)
class Move:
    """One half-move: who made it, and how it is written."""

    side: str
    number: int
    notation: str

    @property
    def piece(self) -> str:
        """The name of the piece that moved."""
        return _PIECES.get(self.notation[0], "pawn")

    @property
    def square(self) -> str:
        """The square it moved to."""
        return self.notation[-2:]


def _moves(line: str, length: int) -> list[Move]:
    return [
        Move("White" if index % 2 == 0 else "Black", index // 2 + 1, notation)
        for index, notation in enumerate(line.split()[:length])
    ]


def _score(moves: list[Move]) -> str:
    return " ".join(f"{move.number}. {move.notation}" if move.side == "White" else move.notation for move in moves)


def _question(rng: random.Random, moves: list[Move], opening: str) -> tuple[str, str, str]:
    move = rng.choice(moves)
    which = f"{move.side}'s move {move.number}"
    return rng.choice(
        [
            (f"Which piece made {which}?", f"{which} was made by the {move.piece}.", move.piece),
            (f"To which square went {which}?", f"{which} went to {move.square}.", move.square),
            ("Which opening is this?", f"This is the {opening}.", opening),
            ("What was the last move?", f"The last move was {moves[-1].notation}.", moves[-1].notation),
            ("Who is to move?", f"The side to move is {_other(moves[-1].side)}.", _other(moves[-1].side)),
        ]
    )


def _other(side: str) -> str:
    return "Black" if side == "White" else "White"


def _compose(rng: random.Random) -> Item:
    opening, line = rng.choice(list(_OPENINGS.items()))
    moves = _moves(line, rng.randint(5, 10))
    question, answer, value = _question(rng, moves, opening)
    event = rng.choice(("", f"[Round {rng.randint(1, 40)}] ", f"[Board {rng.randint(1, 40)}] "))
    return Item(
        prompt=f"{event}{_score(moves)} *\n{question}\n",
        completion=f"{answer}\n",
        check={"value": value},
        template=f"{opening}/{question.split()[0]}/{len(moves)}",
    )


def _is_correct(item: Item, answer: str) -> bool:
    return ends_with_value(answer, item.check["value"])


DOMAIN = Domain(
    name="chess_notation",
    description="Openings in chess notation, with questions about pieces, squares, moves and names.",
    compose=_compose,
    is_correct=_is_correct,
    in_demo=False,
)
