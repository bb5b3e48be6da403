"""What tests of layouts share: small versions of public datasets."""

import importlib.util
from pathlib import Path

import pytest

MAKE = Path(__file__).parents[4] / "shared" / "layouts" / "make.py"


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function that writes one of the public layouts, once, and returns its folder."""
    if not MAKE.is_file():
        pytest.skip("there is no ../shared/layouts/make.py, which writes public layouts")
    spec = importlib.util.spec_from_file_location("make_layouts", MAKE)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    out = tmp_path_factory.mktemp("layouts")

    def write(name: str) -> Path:
        if not (out / name).exists():
            (out / name).mkdir()
            getattr(make, name)(out / name)
        return out / name

    return write
