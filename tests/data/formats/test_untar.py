"""Tar files."""

import io
import tarfile

import pytest

from lesionfast.data.formats.containers import open_container


def test_names_of_a_tar_file_need_not_be_ascii_and_the_last_of_one_name_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (("ä/ü.jpg", b"1"), ("long" * 60 + ".jpg", b"2"), ("ä/ü.jpg", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with open_container(str(tmp_path / "a.tar")) as container:
        assert set(container.list_members()) == {"ä/ü.jpg", "long" * 60 + ".jpg"}
        assert container.read("ä/ü.jpg") == b"3"
        assert container.read("long" * 60 + ".jpg") == b"2"
        with pytest.raises(FileNotFoundError):
            container.read("link.jpg")


def test_a_tar_file_without_files_has_no_members(tmp_path):
    tarfile.open(tmp_path / "a.tar", "w").close()
    with open_container(str(tmp_path / "a.tar")) as container:
        assert container.list_members() == []
        with pytest.raises(FileNotFoundError, match="has no member a.jpg"):
            container.read("a.jpg")
