"""The names of architectures: which there are, and which library each is taken from."""

from functools import lru_cache

import timm
import torchvision

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.models.scratch import archs

LIBRARIES = ("lesionfast", "torchvision", "timm")


@lru_cache
def names_of(library: str) -> tuple[str, ...]:
    """Return the names of a library's classification architectures."""
    if library == "lesionfast":
        return tuple(archs)
    if library == "timm":
        return tuple(timm.list_models())
    return tuple(torchvision.models.list_models(module=torchvision.models))


def list_archs() -> dict[str, str]:
    """Return every name -> its library, torchvision's before timm's; this project's own first."""
    found = {name: library for library in reversed(LIBRARIES) for name in names_of(library)}
    own = archs.describe()
    return own | {name: found[name] for name in sorted(found) if name not in own}


def check_arch(arch: str) -> tuple[str, str]:
    """Return (library, name); raises `LesionfastError` for a name that no library has.

    A name that two have is torchvision's; "timm:resnet50" takes the other. A timm name may end
    with the tag of its weights: "resnet50.a1_in1k".
    """
    library, _, name = arch.rpartition(":")
    if library not in ("", *LIBRARIES):
        raise LesionfastError(
            f"--arch is '{arch}', but there is no library '{library}'. "
            f"Type torchvision:{name} or timm:{name}."
        )
    for each in [library] if library else LIBRARIES:
        base, _, tag = name.partition(".")
        if name in names_of(each):
            return each, name
        if each == "timm" and base in names_of(each):
            check_tag(arch, base, tag)
            return each, name
    known = names_of(library) if library else list_archs()
    nowhere = "neither this project, torchvision nor timm has it"
    lack = f"{library} does not have it" if library else nowhere
    raise LesionfastError(
        f"--arch is '{arch}', but {lack}.{did_you_mean(name, known)} "
        f"List names with: lesionfast list archs"
    )


def check_tag(arch: str, base: str, tag: str) -> None:
    """Raise `LesionfastError` unless timm has weights of that tag for the architecture `base`."""
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag not in tags:
        has = f"It has: {', '.join(tags)}. " if tags else ""
        raise LesionfastError(
            f"--arch is '{arch}', but timm's {base} has no weights '{tag}'."
            f"{did_you_mean(tag, tags)} {has}Type --arch {base} for its default."
        )
