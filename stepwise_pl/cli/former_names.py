"""Names as earlier versions made them. Folders of such a name are found, and none is made any more."""

import re
from collections.abc import Sequence

from omegaconf import DictConfig

from stepwise_pl.cli.names import Names, is_of_base_name, keys_of


class LongNames(Names):
    """Whole keys, and up to 200 characters."""

    longest = 200
    longest_sweep = 120

    def key(self, key: str) -> str:
        return key


class AmbiguousNames(LongNames):
    """Before names were one to one: every character but letters, digits, `_`, `.` and `-` is `_`, so that several settings may have one name."""

    digest = 8

    def parts(self, overrides: Sequence[str]) -> list[str]:
        return [re.sub(r"[^\w.-]", "_", override.lstrip("+~").replace("=", "-", 1)) for override in overrides]

    def choice(self, name: str) -> str:
        return name

    def names_a_run(self, override: str, has_experiment: bool) -> bool:
        key = keys_of([override]).pop()
        unnamed = ("run_dir", "resume", "objective", "seed", "logger", "trainer")
        is_unnamed = key in unnamed or key.startswith(("logger.", "trainer."))
        return not is_of_base_name(override, has_experiment) and not is_unnamed

    def given_elsewhere(self, config: DictConfig) -> dict[str, str]:
        return {}


LONG, AMBIGUOUS = LongNames(), AmbiguousNames()
# The newest first.
FORMER: tuple[Names, ...] = (LONG, AMBIGUOUS)
