"""The tokens of one source, each term of the ledger counted where it happens."""

from dataclasses import dataclass, field

from frisket.types import Ledger

_TOKENS = ("read", "dropped", "truncated", "held_out", "other_objective")
_SAMPLES = ("read", "dropped", "dropped_unread", "truncated", "split", "held_out", "other_objective", "train")


@dataclass
class Account:
    """What has happened to the tokens and samples of one source so far.

    ``dropped_unread`` counts the dropped samples that never became tokens, so that no term holds theirs.

    No term is worked out from another one, so that the ledger's identity can fail where a token is lost.
    """

    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_TOKENS, 0))
    samples: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SAMPLES, 0))
    straddling: int = 0
    removed_characters: int = 0

    def read(self, tokens: int) -> None:
        """A stored sequence was read."""
        self.tokens["read"] += tokens

    def read_rejected(self, tokens: int) -> None:
        """The answer that a preference row declares worse was read with its sample."""
        self.tokens["read"] += tokens

    def read_again(self, tokens: int) -> None:
        """Splitting repeats a token in the next piece, or puts a beginning token before it."""
        self.tokens["read"] += tokens

    def drop(self, tokens: int) -> None:
        """A sample or a piece of one is left out."""
        self.tokens["dropped"] += tokens

    def drop_rejected(self, tokens: int) -> None:
        """A rejected answer is left out with its sample."""
        self.tokens["dropped"] += tokens

    def truncate(self, tokens: int) -> None:
        """The end of a sample is cut off; what is left of it may still be dropped."""
        self.tokens["truncated"] += tokens

    def hold_out(self, tokens: int) -> None:
        """A sample is kept for evaluation."""
        self.tokens["held_out"] += tokens

    def set_aside(self, tokens: int) -> None:
        """A rejected answer is left to another objective."""
        self.tokens["other_objective"] += tokens

    def ledger(self) -> Ledger:
        """The ledger but for what supervision and the order of the run decide."""
        tokens = self.tokens
        return Ledger(
            read=tokens["read"],
            dropped=tokens["dropped"],
            truncated=tokens["truncated"],
            held_out=tokens["held_out"],
            other_objective=tokens["other_objective"],
            straddling=self.straddling,
            removed_characters=self.removed_characters,
            samples=dict(self.samples),
        )
