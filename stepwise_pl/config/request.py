"""A run's request: how it was started, besides its configuration."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SweepLength:
    """How long a sweep is, for its first job to tell how long it takes.

    Attributes:
        jobs: the jobs that are not finished.
        times: their length together, as a multiple of the first job's.
        workers: processes that do jobs side by side.
    """

    jobs: int
    times: float
    workers: int


@dataclass(frozen=True)
class Request:
    """The start of a run: its command line, and its job if it is one of a sweep. Hydra knows this, the trainer does not: `cli.choices.request` asks Hydra once.

    Attributes:
        name: the run's name, and its folder's below `outputs`.
        former_names: the names that older versions gave to this command line, the newest first. Two command lines could have
            the same.
        given: the keys and groups that the command line sets.
        changed: those among them that make something else of a recipe.
        chosen: the names of experiment, task, model and schedule.
        job: `2/9` if the run is a job of a sweep, else empty.
        label: the swept values of that job.
        is_worker: another process hands out the jobs.
        sweep: the length of the sweep, if this is its first job and the length is known.
        words: the words of the command line, as the user typed them; None: this process was not started by a user.
    """

    name: str
    former_names: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    changed: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    job: str = ""
    label: str = ""
    is_worker: bool = False
    sweep: SweepLength | None = None
    words: list[str] | None = None
