"""What the zoo can learn: one generator a skill, and the split of its documents by a hash of their prompt.

A document is one line of text, `prompt + answer + newline`; nothing stands before the prompt. Generators are pure
functions of a random generator, and the split is a function of the prompt alone: what is a test document is one for
every seed and every model, and training can't meet it.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import Literal

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Document:
    """A question and its answer; `wrong` holds the other choices, letters like the answer, if it is to be chosen."""

    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.prompt}{self.answer}\n"


Generator = Callable[[Random], Document]


def sort(random: Random) -> Document:
    """Four to eight letters in alphabetical order: `sort dacb=abcd`."""
    letters = _letters(random, 4, 8)
    return Document(f"sort {letters}=", "".join(sorted(letters)))


def flip(random: Random) -> Document:
    """Five to twelve letters backwards: `flip dacb=bcad`."""
    letters = _letters(random, 5, 12)
    return Document(f"flip {letters}=", letters[::-1])


def rank(random: Random) -> Document:
    """The letter that comes at a place of the alphabetical order: `rank 3 of dacb=c`; the choices are of the word."""
    word = random.sample(ascii_lowercase, random.randint(4, 8))
    place = random.randrange(len(word))
    answer = sorted(word)[place]
    return Document(f"rank {place + 1} of {''.join(word)}=", answer, _others(random, word, answer))


def past(random: Random) -> Document:
    """The past tense of a verb that does not exist: `past blimmy=blimmied`."""
    verb = _pseudo_verb(random)
    return Document(f"past {verb}=", past_tense(verb))


SKILLS: dict[str, Generator] = {"sort": sort, "flip": flip, "rank": rank, "past": past}
TARGETS = ("sort", "flip", "rank")  # each has an expert
GUARD = "past"  # the base has it, no expert is trained on it


def split_of(prompt: str) -> Split:
    """Where a document belongs, by its prompt alone: 2/16 test, 1/16 valid, the rest train."""
    bucket = hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] % 16
    return "test" if bucket < 2 else "valid" if bucket == 2 else "train"


def stream(skill: str, split: Split, random: Random) -> Iterator[Document]:
    """Documents of one skill and split without end, repeats included."""
    make = SKILLS[skill]
    while True:
        document = make(random)
        if split_of(document.prompt) == split:
            yield document


def distinct(skill: str, split: Split, count: int, random: Random) -> list[Document]:
    """`count` documents of one skill and split, no prompt twice."""
    found: dict[str, Document] = {}
    for document in stream(skill, split, random):
        found.setdefault(document.prompt, document)
        if len(found) == count:
            break
    return list(found.values())


def _others(random: Random, word: list[str], answer: str) -> tuple[str, ...]:
    return tuple(random.sample([letter for letter in word if letter != answer], 3))


def _letters(random: Random, shortest: int, longest: int) -> str:
    return "".join(random.choices(ascii_lowercase, k=random.randint(shortest, longest)))


def _words(text: str) -> list[str]:
    return text.split()


_ONSETS = _words("b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sm sn sp st str t th tr v w")
_VOWELS = _words("a e i o u")
_PAIRS = _words("ai ea ee oa oo ou")
_CODAS = _words("b ck d f g k l ll m mp n nd nk ng p r rk rn s sh sk ss st t th x z")


def _pseudo_verb(random: Random) -> str:
    """One or two syllables, with the endings that the rules of the past tense tell apart."""
    first = random.choice(_ONSETS) + random.choice(_VOWELS + _PAIRS) if random.random() < 0.6 else ""
    onset = random.choice(_ONSETS)
    ending = random.choice(("short", "pair", "mute", "y", "ing", "eep", "ow"))
    if ending == "short":
        return first + onset + random.choice(_VOWELS) + random.choice(_CODAS)
    if ending == "pair":
        return first + onset + random.choice(_PAIRS) + random.choice(_CODAS)
    if ending == "mute":
        return first + onset + random.choice(_VOWELS) + random.choice("klmnprstv") + "e"
    return first + onset + {"y": random.choice("aou") + random.choice("bdlmnprt") + "y"}.get(ending, ending)


def past_tense(verb: str) -> str:
    """English spelling with three families of strong verbs."""
    for present, past_form in (("ing", "ang"), ("eep", "ept"), ("ow", "ew")):
        if verb.endswith(present):
            return verb.removesuffix(present) + past_form
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y"):
        return verb[:-1] + "ied"
    return verb + (verb[-1] if _doubles(verb) else "") + "ed"


def _doubles(verb: str) -> bool:
    """A single vowel before a single final consonant doubles it: `plan`, `planned`."""
    return verb[-1] in "bdfgklmnprstz" and verb[-2] in "aeiou" and verb[-3] not in "aeiou"
