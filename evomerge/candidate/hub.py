"""Models by their id on the Hugging Face hub: from its cache, or downloaded where there is a network."""

from __future__ import annotations

from pathlib import Path

from evomerge.candidate.checkpoint import TOKENIZER_FILES
from evomerge.errors import CheckpointError
from evomerge.recipe import HUB_ID

# No pickles, and no code
WANTED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json")


def is_hub_id(location: str) -> bool:
    """Whether this can be an id on the hub, as organisation/name or organisation/name@revision, and is no path here."""
    return bool(HUB_ID.match(location)) and not Path(location).exists()


def snapshot(location: str) -> Path:
    """The directory of a model of the hub, downloaded if it is not in the cache yet. Raises CheckpointError where that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = location.partition("@")
    how = f"with a network: hf download {name} --local-dir DIR, and name DIR; or correct the path"
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*WANTED, *TOKENIZER_FILES]))
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise CheckpointError(f"{location}: {_short(error)}; correct the id, or log in: hf auth login") from None
        why = f"neither a directory here nor in the hub's cache, and the hub was not reached ({_short(error)})"
        raise CheckpointError(f"{location}: {why}; {how}") from None
    except HFValidationError as error:
        raise CheckpointError(f"{location}: is no directory here and no id of the hub ({_short(error)}); {how}") from None


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
