"""What the commands import, for `tests.forked`; nothing here may start a thread."""

import stepwise_pl.building
import stepwise_pl.checking
import stepwise_pl.compare
import stepwise_pl.evaluation
import stepwise_pl.export
import stepwise_pl.guard
import stepwise_pl.results
import stepwise_pl.runs
import stepwise_pl.write_data  # noqa: F401
