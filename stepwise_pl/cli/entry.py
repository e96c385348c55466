"""Run a command through Hydra: the command line becomes a checked dataclass, and an error becomes one line."""

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stepwise_pl.cli.arguments import hydra_arguments
from stepwise_pl.cli.choices import in_sweep
from stepwise_pl.cli.help import show_own_help
from stepwise_pl.cli.plugin_words import with_plugins
from stepwise_pl.cli.recipes import left_out, use_recipe_loader
from stepwise_pl.cli.words import error_line, fail, say
from stepwise_pl.cli.workers import here
from stepwise_pl.common import plugins, processes, registry, terminal
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.known import CONF, choice_file, set_command
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.plain import to_object
from stepwise_pl.config.training import GuardConfig, LoggerConfig, OptimizerConfig, TrainerConfig

log = logging.getLogger("stepwise_pl")

GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
    "guard": GuardConfig,
    "logger": LoggerConfig,
}


def register_schemas(command: str, schema: type) -> None:
    """Make the dataclasses known to Hydra: `_<command>`, `_<group>`, and `_<kind>` for a task, schedule or method.

    A kind of a plugin that has no YAML file is a choice itself. From then on Hydra's loaders let recipes give way to the
    choices of the command line (`cli.recipes`), and its help is ours (`cli.help`).
    """
    use_recipe_loader()
    show_own_help()
    store = ConfigStore.instance()
    store.store(f"_{command}", schema)
    for group, part in GROUPS.items():
        store.store(f"_{group}", part, group=group)
    for (group, kind), part in registry.load_all().items():
        store.store(f"_{kind}", part, group=group)
    for group, kind in plugins.kinds():
        if choice_file(group, kind) is None:
            store.store(kind, registry.SCHEMAS[group, kind], group=group)


def entry_point(command: str, schema: type, run: Callable[[Any], Any]) -> Any:
    """Compose `conf/<command>.yaml` with the command line, check it as a `schema`, and call `run` with the object.

    A `UserError`, or an error of Hydra, the configuration or the disk, becomes one line on
    standard error, and the exit status is 2. A defect keeps its traceback.
    """
    set_command(command, schema)
    terminal.restore_docstrings()
    terminal.prepare()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    here.words = sys.argv[1:]
    try:
        words = with_plugins(sys.argv[1:])
        register_schemas(command, schema)
        sys.argv[1:] = hydra_arguments(words)
    except UserError as error:
        raise SystemExit(fail(str(error))) from None

    def job(cfg: DictConfig) -> Any:
        # The log is for the person at the keyboard. Hydra has silenced it until here.
        # The first process of a run speaks for its further ones.
        level = logging.ERROR if processes.is_further() else logging.INFO
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
        if command == "train" and in_sweep():
            from stepwise_pl.cli import multirun

            return multirun.run_job(run, cfg)
        try:
            if said := left_out():
                log.info("%s", said)
            for name in cfg.get("plugins") or ():  # a recipe may name some
                plugins.load(name)
            return run(to_object(cfg))
        except Exception as error:
            # Hydra would print a line of its own before an error that leaves this function.
            if HydraConfig.get().mode is RunMode.RUN and (line := error_line(error)) is not None:
                raise SystemExit(fail(line)) from None
            raise

    main = hydra.main(config_path=str(CONF), config_name=command, version_base="1.3")(job)
    shown = io.StringIO()
    try:
        if {"-h", "--help"} & set(sys.argv):
            with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
                main()
            return say(shown.getvalue().rstrip())
        from stepwise_pl.cli import multirun

        with multirun.closing():
            return main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if (line := error_line(error)) is None:
            raise
        raise SystemExit(fail(line)) from None
