"""Small trained policies that ship with the package: ``pretrained:NAME``. ``benchmarks/pretrain.py`` makes them."""

from __future__ import annotations

from pathlib import Path

from ssm_metarl.config_text import ConfigError, did_you_mean

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Those that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def path(name: str) -> Path:
    """The file of one of them. Raises ConfigError, with the near names."""
    if name not in names():
        near = did_you_mean(name, names()) or f"; there are {', '.join(names())}"
        raise ConfigError(f"no pretrained policy is called {name!r}{near}")
    return FOLDER / f"{name}.safetensors"
