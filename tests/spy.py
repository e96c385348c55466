"""Write each job that Hydra's sweeper gets to the file that the environment names."""

import json
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class Spy(Callback):
    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        with Path(os.environ["SPY"]).open("a") as file:
            file.write(json.dumps([job_return.status.name, job_return._return_value]) + "\n")
