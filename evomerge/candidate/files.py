"""Which files of a model directory may be opened: none that leads out of it, and no pickle."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def contained(file: Path, folder: Path) -> Path:
    """The file, if it lies in the folder once every link is followed; a snapshot's blobs lie beside it in the hub's cache.

    Raises CheckpointError where it leads elsewhere, to itself, or nowhere.
    """
    if _without_links(file, folder):
        return file
    home = folder.resolve()
    try:
        real = file.resolve(strict=True)
    except (RuntimeError, OSError) as error:  # a link to itself is a RuntimeError up to Python 3.12
        raise CheckpointError(f"{file}: {_broken(file, error)}") from None
    if not any(real.is_relative_to(root) for root in (home, *_blobs(home))):
        raise CheckpointError(f"{file}: leads out of its directory, to {real}; copy the file into it, or name that directory")
    return file


def _without_links(file: Path, folder: Path) -> bool:
    """Whether the file is there and nothing below the folder is a link: then there is nothing to follow, and paths that only
    the kernel can follow (another process's root in /proc) need not be resolved."""
    inner = file.relative_to(folder).parts if file.is_relative_to(folder) else ("..",)
    below = [folder.joinpath(*inner[: i + 1]) for i in range(len(inner))]
    return ".." not in inner and not any(step.is_symlink() for step in below) and file.exists()


def _broken(file: Path, error: Exception) -> str:
    if not file.is_symlink():
        return "is missing; copy or download it again" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    if isinstance(error, FileNotFoundError):
        return f"is a link to {file.readlink()}, which is missing; download the model again"
    return "is a link that leads back to itself; download the model again"


def _blobs(home: Path) -> tuple[Path, ...]:
    """Where the files of a snapshot in the hub's cache really lie: models--a--b/snapshots/REVISION -> models--a--b/blobs."""
    cached = home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--")
    return (home.parent.parent / "blobs",) if cached else ()


def not_pickle(file: Path) -> Path:
    """The file, if it is no pickle by its name. Raises CheckpointError with the way to convert it."""
    if file.suffix in PICKLES:
        raise CheckpointError(
            f"{file}: is a pickle, which can run any code when it is opened; convert the model to safetensors"
            " (where you trust it: transformers or peft, from_pretrained and then save_pretrained)"
        )
    return file
