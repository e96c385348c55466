"""Tokenizers: the small offline one, those of the Hub, and repairs of them."""

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.hub import not_loaded, source
from stepwise_pl.config.model import SMALL
from stepwise_pl.data.layout import MARK
from stepwise_pl.tasks.base import Task

log = logging.getLogger(__name__)


def build_tokenizer(name: str, symbols: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """Return the tokenizer `name`.

    Args:
        name: `symbols`: the small tokenizer, with one token per word of `symbols`; otherwise a Hugging Face tokenizer
            by Hub name, folder or GGUF file.
        symbols: the words of the task's texts.

    Raises:
        UserError: the task's words are not known, or the tokenizer cannot be loaded.
    """
    if name == SMALL:
        if not symbols:
            raise UserError(
                "model.tokenizer=symbols: this task has no fixed set of words; name a Hugging Face tokenizer"
            )
        return small_tokenizer(symbols)
    tokenizer = load_tokenizer("model.tokenizer", name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.tokenizer={name}: it has no end token, which separates prompt, CoT and answer")
    give_decoder(tokenizer)
    return tokenizer


def load_tokenizer(key: str, name: str) -> PreTrainedTokenizerBase:
    """Return a Hugging Face tokenizer by Hub name, folder or GGUF file; `key` is the config key that gives the name.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    try:
        tokenizer = _class_of(Path(name).expanduser()).from_pretrained(**source(name))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no `Exception`
        raise not_loaded(key, name, error) from None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"{key}={name}: holds no tokenizer of texts but a {type(tokenizer).__name__}")
    return tokenizer


def _class_of(folder: Path) -> Any:
    """Return the class that reads the tokenizer of a folder; AutoTokenizer if `folder` is none.

    AutoTokenizer goes by the type of the model in the folder. Beside a qwen2 it makes a
    Qwen2Tokenizer of any tokenizer.
    """
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        # GPT-2's vocabulary often comes as two bare files that name no tokenizer class.
        return GPT2Tokenizer if (folder / "merges.txt").is_file() else AutoTokenizer
    named = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
    is_plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast") and (folder / "tokenizer.json").is_file()
    return PreTrainedTokenizerFast if is_plain else AutoTokenizer


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many token ids a model must embed: one more than the highest. The vocabulary may have holes."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def tokenizer_for(task: Task, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer `name` for a task. The task's words are looked up only for the small tokenizer."""
    return build_tokenizer(name, task.symbols() if name == SMALL else ())


def small_tokenizer(symbols: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word: `symbols`, the answer mark, the end token and the unknown token.

    Padding is the end token. The words are sorted, so that tasks with the same words have the
    same ids and can share weights.
    """
    words = dict.fromkeys((*sorted(symbols), MARK, "<eos>", "<unk>"))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def backend_model(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the part of a fast tokenizer that turns words into tokens; None if there is none."""
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)


def is_word_list(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are exactly the words between spaces, as with the small tokenizer.

    Only then may a dictionary of words take the tokenizer's place.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (
        backend is None
        or not isinstance(backend.model, models.WordLevel)
        or not isinstance(backend.pre_tokenizer, pre_tokenizers.WhitespaceSplit)
        or backend.normalizer is not None
        or backend.num_special_tokens_to_add(False)  # a post-processor that adds no token does nothing
        or tokenizer.unk_token is None
        or tokenizer.unk_token != backend.model.unk_token
    ):
        return False
    # A tokenizer finds added tokens inside words as well. They do no harm if no word holds one.
    vocabulary = tokenizer.get_vocab()
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return all(token.split() == [token] for token in added) and not any(
        token in word and token != word for word in vocabulary for token in added
    )


def give_decoder(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a word list without a decoder one that joins its tokens without spaces, if its tokens include the spaces.

    Without a decoder, tokens are joined with spaces, and `####` of four tokens would never
    come back. Other tokenizers may write their tokens in a special alphabet, so they are left
    as they are.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is not None or not isinstance(backend.model, models.WordLevel):
        return
    text = f" {MARK} "
    try:
        tokens = backend.encode(text, add_special_tokens=False).tokens
    except Exception:  # the tokenizer does not know a part of the text
        return
    if "".join(tokens) == text:
        log.info("the tokenizer has no decoder: its tokens are joined as they are, without spaces between")
        backend.decoder = decoders.Fuse()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """Return the token ids of one text."""
    return list(tokenizer(text, **options)["input_ids"])
