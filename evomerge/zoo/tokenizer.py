"""The zoo's tokenizer: one token a character, and nothing added to a text by itself.

A prompt is tokenised alike in training, in lm-eval and in any engine, because no special token is ever inserted:
a document begins with its first letter and ends with a newline.
"""

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + " " + string.ascii_letters + string.digits + string.punctuation
VOCABULARY = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
PAD, BOS, EOS = (VOCABULARY[token] for token in SPECIAL[:3])


def encode(text: str) -> list[int]:
    """The same ids that the tokenizer gives, without it: training makes millions of them."""
    return [VOCABULARY[character] for character in text]


def build(context: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer in the form that transformers saves and loads."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
