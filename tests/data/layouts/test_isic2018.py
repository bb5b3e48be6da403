"""ISIC 2018 as it lies on disk, whole, renamed, moved and broken."""

from lesionfast.config import DataConfig
from lesionfast.data.metadata import load_metadata


def test_what_it_looks_like_is_said(written, caplog):
    caplog.set_level("INFO")
    load_metadata(DataConfig(data=str(written("isic2018"))))
    assert "This looks like ISIC 2018: 88 images, 7 classes, 56 lesions." in caplog.text
