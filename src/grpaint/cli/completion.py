"""What a shell proposes for an argument; nothing heavy is imported for it."""

from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def recipes(incomplete: str) -> list[str]:
    """Return the packaged recipes that begin with ``incomplete``: WORLD/METHOD, and METHOD alone for scenes."""
    names = sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.glob("*/*.toml"))
    alone = [name.removeprefix("scenes/") for name in names if name.startswith("scenes/")]
    return [name for name in (*alone, *names) if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Return the names of the runs under ``runs/`` that begin with ``incomplete``."""
    names = sorted(file.parent.name for file in Path("runs").glob("*/run.toml"))
    return [name for name in names if name.startswith(incomplete)]
