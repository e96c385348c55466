"""`python tests/driver.py <options> -- <arguments of train>`: the real training command, made to fail at a chosen moment.

Options:
    --end=<moment>,<step>,<how>   the process ends there, by a signal or by an exception
    --accuracy=<expression>       answer accuracy on validation, of `attempt` and `step`, on 500 examples
    --kill=<name>,<step>          kill a child process of this name before that step
    --weights=<value>,<attempt>,<step>
                                  the weights become this number before that step
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from stepwise_pl import train
from stepwise_pl.training import build as building
from stepwise_pl.training import checkpoints as callbacks
from stepwise_pl.training import rollback
from stepwise_pl.training.module import StepwiseModule

if "--" in sys.argv:
    split = sys.argv.index("--")
    os.environ["DRIVER"] = json.dumps(sys.argv[1:split])  # for the further processes of a DDP run
    sys.argv[1 : split + 1] = []
options = dict(option.removeprefix("--").split("=", 1) for option in json.loads(os.environ["DRIVER"]))
moment, end_step, how = options.get("end", "never,0,SIGKILL").split(",")
weights = options.get("weights", "").split(",")
done = False


def end() -> None:
    if how == "exception":
        raise RuntimeError("stopped here")
    os.kill(os.getpid(), getattr(signal, how))


class Fail(Callback):
    def at(self, name: str, trainer: Any) -> None:
        global done
        if name == moment and trainer.global_step == int(end_step) and not done:
            done = True
            end()

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        if weights[0] and [module.attempt, trainer.global_step] == [int(weights[1]), int(weights[2])]:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.fill_(float(weights[0]))
        if "kill" in options and trainer.global_step == int(options["kill"].split(",")[1]):
            subprocess.run(["pkill", "-KILL", "-P", str(os.getpid()), options["kill"].split(",")[0]])
        inside = trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches
        self.at("between micro-batches" if inside else "before the step", trainer)

    def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
        self.at("inside the step", trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.at("after the step", trainer)

    def on_validation_start(self, trainer: Any, *args: Any) -> None:
        self.at("before validation", trainer)

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self.at("in validation", trainer)

    def on_test_start(self, trainer: Any, *args: Any) -> None:
        self.at("before the test", trainer)

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self.at("end of epoch", trainer)


build = building.build_trainer
put = rollback.put_in_place
link = callbacks.link


def build_with_end(*args: Any, **kwargs: Any) -> Any:
    trainer = build(*args, **kwargs)
    trainer.callbacks.insert(0, Fail())  # type: ignore[attr-defined]
    save = trainer.save_checkpoint

    def half(path: Any, *args: Any, **kwargs: Any) -> None:
        save(path, *args, **kwargs)
        if moment == "writing a checkpoint" and trainer.global_step == int(end_step):
            if how != "SIGTERM":  # SIGTERM lets the write finish
                os.truncate(path, Path(path).stat().st_size // 2)
            end()

    trainer.save_checkpoint = half  # type: ignore[method-assign]
    return trainer


def put_or_end(*args: Any) -> None:
    if moment == "before going back":
        end()
    put(*args)
    if moment == "after going back":
        end()


def link_and_end(*args: Any) -> None:
    link(*args)
    if moment == "between good and last" and state(args[0])["global_step"] == int(end_step):
        end()


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


building.build_trainer = build_with_end
rollback.put_in_place = put_or_end
callbacks.link = link_and_end
if "accuracy" in options:
    measured = StepwiseModule._evaluated

    def given(self: StepwiseModule, split: str) -> dict[str, Any]:
        values = measured(self, split)
        if split == "val":
            known = {"attempt": self.attempt, "step": self.trainer.global_step}
            accuracy = torch.tensor(eval(options["accuracy"], known))
            values |= {
                "val/answer_accuracy": accuracy,
                "val/answer_accuracy_any_length": accuracy,
                "val/examples": torch.tensor(500.0),
            }
        return values

    StepwiseModule._evaluated = given  # type: ignore[method-assign]
train.main()
