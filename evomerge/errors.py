"""What can go wrong, said in one line: what, where, and what to do.

EvomergeError                bad input; the command ends with exit code 2
├── DocumentError            a YAML file that cannot be read as what it claims to be
├── RecipeError              a recipe or search space that contradicts itself
├── CheckpointError          a model directory that is missing, broken, or does not fit the others
├── SuiteError               tasks, documents or splits that are not there or do not suffice
├── GuardError               a guard that its documents cannot decide
├── ScoringError             a scorer that cannot score what it was given
├── HealingError             a candidate whose training left the finite numbers
├── StudyError               a result directory that is taken, locked, or belongs to another study
└── MissingExtra             an optional package that is not installed, with the pip command

To add one: subclass the nearest, one sentence of docstring, and draw it here.
"""


class EvomergeError(Exception):
    """Bad input: the message is one line that names what, where and the remedy."""


class DocumentError(EvomergeError):
    """A YAML file that cannot be read as what it claims to be."""


class RecipeError(EvomergeError):
    """A recipe or search space that contradicts itself."""


class CheckpointError(EvomergeError):
    """A model directory that is missing, broken, or does not fit the others."""


class SuiteError(EvomergeError):
    """Tasks, documents or splits that are not there or do not suffice."""


class GuardError(EvomergeError):
    """A guard that its documents cannot decide."""


class ScoringError(EvomergeError):
    """A scorer that cannot score what it was given."""


class HealingError(EvomergeError):
    """A candidate whose training left the finite numbers."""


class StudyError(EvomergeError):
    """A result directory that is taken, locked, or belongs to another study."""


class MissingExtra(EvomergeError):
    """An optional package that is not installed."""
