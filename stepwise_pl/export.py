"""`python -m stepwise_pl.export run=<folder>`: a standard Hugging Face folder, and a model on the Hub."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common import upload
from stepwise_pl.common.disk import require_new, write_text
from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.settings import setting
from stepwise_pl.runs.folder import EXPORT_FACTS, export_facts, is_export, require_run


@dataclass
class ExportConfig:
    """A standard Hugging Face folder from a run: `python -m stepwise_pl.export run=<folder>`."""

    # The run folder; with push= also a folder that this command has written.
    run: str = setting("", path=True)
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), or a file.
    checkpoint: str = setting("best", path=True)
    # The folder to write; null: `export` in the run folder.
    out: str | None = setting(None, path=True)
    # The license of the model, as the Hub names it (`apache-2.0`, `mit`), for the card; null: the card names none.
    license: str | None = None
    # Upload the folder to the Hub as `<user>/<name>`. The token that may write is read from HF_TOKEN in the environment; null: do not.
    push: str | None = None
    # A new repository on the Hub is private. `false` makes it public, and is needed to push into a public one.
    private: bool = True
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        if self.license is not None:
            is_name = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license) is not None
            require(
                is_name, "license", self.license, "must be a name as the Hub has them: apache-2.0, mit, cc-by-4.0, ..."
            )
        if self.push is None:
            require(self.private, "private", self.private, "is about push=<user>/<name>")
        else:
            upload.require_name(self.push)
        if not self.is_exported:
            if self.run and is_export(Path(self.run)):
                raise UserError(
                    f"run={self.run}: is an exported model already; push=<user>/<name> uploads it, or give the folder of a training run"
                )
            require_run(self.run, "export")
            return
        for key, value in (("checkpoint", self.checkpoint), ("out", self.out), ("license", self.license)):
            require(value in (None, "best"), key, value, f"is for run folders, and {self.run} is an exported model")
        if not (Path(self.run) / EXPORT_FACTS).is_file():
            raise UserError(
                f"run={self.run}: holds no {EXPORT_FACTS}, so this command has not written it; give a run folder"
            )

    @property
    def is_exported(self) -> bool:
        """Whether the folder is to be pushed as it is."""
        return self.push is not None and bool(self.run) and is_export(Path(self.run))


def export(config: ExportConfig) -> Path:
    """Export as configured; return the folder.

    Raises:
        UserError: the folder is not empty, or see `write_model`; or the Hub does not take the folder, which then stays.
    """
    # A token that is missing is told before the work.
    token = upload.token_for(config.push) if config.push is not None else ""
    out = Path(config.run)
    if not config.is_exported:
        out = Path(config.out) if config.out else out / "export"
        upload_it = f"; python -m stepwise_pl.export {_typed(out)} push={config.push} uploads it as it is"
        require_new("out", out, upload_it if _is_ours(config, out) else "")
        from stepwise_pl.models.export import write_model

        write_model(Path(config.run), config.checkpoint, out, config.license)
        say(f"written to {out}; {out / 'README.md'} shows how to prompt it")
    if config.push is not None:
        push(out, config.push, token, private=config.private)
    return out


def _typed(folder: Path) -> str:
    """The setting as one types it into a shell: a folder may have blanks in its name."""
    return shlex.quote(f"run={folder}")


def _is_ours(config: ExportConfig, out: Path) -> bool:
    return config.push is not None and (out / EXPORT_FACTS).is_file()


def push(folder: Path, name: str, token: str, *, private: bool) -> None:
    """Upload an exported folder, and print the link. Its card gets the name, so that the code in it runs anywhere.

    Raises:
        UserError: see `upload.push`. The folder stays as it was; the message says so, and how to try again.
    """
    card = folder / "README.md"
    try:
        before = card.read_text(encoding="utf-8") if card.is_file() else None
    except UnicodeDecodeError:
        raise UserError(f"{card}: is no text in UTF-8, so it is no card that the Hub reads") from None
    if before is not None:
        write_text(card, name_on_hub(before, name))
    message = commit_message(export_facts(folder))
    try:
        pushed = upload.push(folder, name, token, message, private=private)
    except UserError as error:
        # The card would otherwise name a model that the Hub does not have.
        if before is not None:
            write_text(card, before)
        public = "" if private else " private=false"
        raise UserError(
            f"{error}. The exported folder stays: {folder}; python -m stepwise_pl.export {_typed(folder)} push={name}{public} tries again"
        ) from None
    seen_by = "private" if pushed.private else "public"
    if pushed.private and not private:
        seen_by = "still private; its settings on the Hub make it public"
    say(f"commit          {message}\npushed to       {pushed.link} ({seen_by})")


def name_on_hub(card: str, name: str) -> str:
    """Return the card of an export with the model's name on the Hub in its code (`models.card.CODE`)."""
    return re.sub(r'^name = ".*?"', f'name = "{name}"', card, count=1, flags=re.MULTILINE)


def commit_message(facts: Mapping[str, Any]) -> str:
    """Return the message of a commit: the run, the stage of the checkpoint and its step.

    Args:
        facts: of the exported folder (`EXPORT_FACTS`).
    """
    stage = f", stage {facts['stage']}" if "stage" in facts else ""
    return (
        f"{facts.get('run', 'stepwise_pl')} seed {facts.get('seed', '?')}: {facts.get('removed_tokens', '?')} of "
        f"{facts.get('max_cot_tokens', '?')} CoT tokens removed{stage}, {facts.get('checkpoint', '?')} at step {facts.get('step', '?')}"
    )


def main() -> None:
    """Run the command."""
    entry_point("export", ExportConfig, export)


if __name__ == "__main__":
    main()
