"""Calls as users may make them, odd ones above all, and a judge of what comes of each.

A case is text: Python expressions for X and for the parameters. So a case prints as the code that repeats it, and goes
to another process as it is. `cases` makes them, `values` holds what their expressions use, `bench` evaluates them, and
`judge` runs one and says what is wrong with what comes of it.
"""

from fuzzing.bench import Bench
from fuzzing.cases import CASES, OWN, OWN_OF_PRETRAIN, Case, cases, numbered_case
from fuzzing.judge import Verdict, judge, limited_memory, watched_training

__all__ = [
    "CASES",
    "OWN",
    "OWN_OF_PRETRAIN",
    "Bench",
    "Case",
    "Verdict",
    "cases",
    "judge",
    "limited_memory",
    "numbered_case",
    "watched_training",
]
