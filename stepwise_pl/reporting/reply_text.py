"""Replies of a model, for reading."""

from collections.abc import Sequence

from stepwise_pl.common.text import counted, milliseconds, table
from stepwise_pl.runs.replies import Reply

WIDEST = 60  # characters of a cell of the table before it goes over several lines


def where(reply: Reply) -> str:
    """`best.ckpt, step 4000, 8 of 8 CoT tokens removed`: the model that has answered."""
    step = f", step {reply.step}" if reply.step is not None else ""
    if reply.max_cot_tokens is None:  # an exported folder that does not say
        return f"{reply.checkpoint}{step}"
    of_all = f" of {reply.max_cot_tokens}"
    stage = f", stage {reply.stage}" if reply.stage else ""
    return f"{reply.checkpoint}{step}, {reply.removed_tokens}{of_all} CoT tokens removed{stage}"


def reply_lines(reply: Reply, with_source: bool = True) -> list[str]:
    """The reply, a line for each part; `with_source`: with the model that has answered."""
    if reply.answer is None:
        said = f"none was finished (written: {reply.unfinished})" if reply.unfinished else "none was finished"
    else:
        said = f"{reply.answer}  {reply.verdict}"
    wanted = f"; right is {reply.wanted}" if reply.wanted is not None and not reply.right else ""
    cot = f"{reply.cot}  ({counted(reply.cot_tokens, 'token')})" if reply.cot_tokens else "none written"
    return [
        f"answer      {said}{wanted}",
        f"CoT         {cot}",
        f"time        {milliseconds(reply.milliseconds)} ms",
        *([f"model       {where(reply)}"] if with_source else []),
    ]


def reply_table(replies: Sequence[Reply]) -> list[str]:
    """The replies to one question at several stages, a row for each. The CoT stands at the right, where its tokens stay."""
    named = any(reply.stage for reply in replies)
    head = [*["stage"] * named, "removed tokens", "answer", "", "ms", "CoT tokens", "CoT written"]
    rows = [
        [
            *[reply.stage] * named, str(reply.removed_tokens), reply.answer or "-", reply.verdict, milliseconds(reply.milliseconds),
            str(reply.cot_tokens), reply.cot,
        ]
        for reply in replies
    ]  # fmt: skip
    wanted = next((reply.wanted for reply in replies if reply.wanted is not None), None)
    return [*table(head, rows, WIDEST), *([f"The right answer is {wanted}."] if wanted is not None else [])]
