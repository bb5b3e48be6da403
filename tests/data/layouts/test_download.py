"""Public datasets come from their server whole, go on after a break, and are checked."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from lesionfast.data.layouts.download import HAM10000, download
from lesionfast.errors import LesionfastError

TABLE = b"lesion_id,image_id,dx\nL1,ISIC_1,nv\n"
IMAGES = bytes(range(256)) * 20_000  # 5 MB


class Dataverse(BaseHTTPRequestHandler):
    """Answers as a Dataverse does; `server.files` maps names to bytes, `server.cut` to a length."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/api/datasets/"):
            assert HAM10000 in unquote(self.path)
            self.answer(200, self.server.listing())
            return
        name = list(self.server.files)[int(self.path.split("/")[-1].split("?")[0])]
        data = self.server.files[name]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if not self.server.ranges:
            start = 0
        if start >= len(data):
            self.answer(416, b"")
            return
        cut = self.server.cut.pop(name, None)
        self.answer(206 if start else 200, data[start:], cut)

    def answer(self, status, data, cut=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])

    def log_message(self, *message):
        pass


@pytest.fixture
def server():
    """A running Dataverse with the files of HAM10000 and of another dataset."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), Dataverse)
    made.files = {
        "HAM10000_metadata.csv": TABLE,
        "HAM10000_images_part_1.zip": IMAGES,
        "ISIC2018_Task3_Test_Images.zip": b"other",
        "readme.txt": b"-",
    }
    made.asked, made.cut, made.ranges, made.wrong = [], {}, True, ()

    def listing():
        entries = []
        for number, (name, data) in enumerate(made.files.items()):
            checksum = hashlib.md5(data).hexdigest() if name not in made.wrong else "0" * 32
            about = {"id": number, "filesize": len(data), "md5": checksum}
            if name.endswith(".csv"):  # the server has made a .tab of it
                about |= {"originalFileFormat": "text/csv", "originalFileName": name}
                name = name.replace(".csv", ".tab")
            entries.append({"label": name, "dataFile": about})
        return json.dumps({"status": "OK", "data": entries}).encode()

    made.listing = listing
    threading.Thread(target=made.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    yield made
    made.shutdown()


def test_the_files_of_a_data_set_come_whole_and_as_they_were_uploaded(server, tmp_path):
    seen = []
    paths = download("ham10000", tmp_path, server.url, lambda done, total: seen.append(done))
    assert [path.name for path in paths] == ["HAM10000_metadata.csv", "HAM10000_images_part_1.zip"]
    assert [path.read_bytes() for path in paths] == [TABLE, IMAGES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert seen == sorted(seen) and seen[-1] >= len(IMAGES)
    asked = len(server.asked)
    download("ham10000", tmp_path, server.url)
    assert len(server.asked) == asked + 1  # the list alone: both files are there


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.cut["HAM10000_images_part_1.zip"] = 3_000_000
    with pytest.raises(LesionfastError, match=r"stopped after 2\.9 MB .* again: it goes on"):
        download("ham10000", tmp_path, server.url)
    assert (tmp_path / "HAM10000_images_part_1.zip.part").stat().st_size == 3_000_000
    _, images = download("ham10000", tmp_path, server.url)
    assert images.read_bytes() == IMAGES
    assert server.asked[-1][1] == "bytes=3000000-"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "HAM10000_images_part_1.zip.part").write_bytes(b"begun")
    assert download("ham10000", tmp_path, server.url)[1].read_bytes() == IMAGES


def test_a_file_that_was_whole_but_not_renamed_is_taken(server, tmp_path):
    (tmp_path / "HAM10000_images_part_1.zip.part").write_bytes(IMAGES)
    assert download("ham10000", tmp_path, server.url)[1].read_bytes() == IMAGES


def test_a_wrong_checksum_is_an_error_and_leaves_nothing(server, tmp_path):
    server.wrong = ("HAM10000_images_part_1.zip",)
    with pytest.raises(LesionfastError, match="was damaged on the way: its MD5 is .* not 000"):
        download("ham10000", tmp_path, server.url)
    assert [path.name for path in tmp_path.iterdir()] == ["HAM10000_metadata.csv"]


def test_the_test_set_of_isic_2018_is_a_part_of_the_same_publication(server, tmp_path):
    (path,) = download("isic2018-test", tmp_path, server.url)
    assert path.read_bytes() == b"other"


def test_names_that_lead_out_of_the_folder_are_refused(server, tmp_path):
    server.files = {"HAM10000_metadata/../../evil": b"x"}
    with pytest.raises(LesionfastError, match="is not the name of a file"):
        download("ham10000", tmp_path, server.url)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server: setattr(server, "listing", lambda: b"<html>"), "can't be read"),
        (lambda server: setattr(server, "listing", lambda: b'{"data": [{}]}'), "can't be read"),
        (lambda server: setattr(server, "listing", lambda: b"[" * 100_000), "nested too deep"),
        (lambda server: setattr(server, "files", {"a.txt": b""}), "none of them is named like"),
        (lambda server: server.server_close(), "can't be reached"),
    ],
)
def test_a_server_that_fails_names_the_way_by_hand(server, tmp_path, change, message):
    change(server)
    with pytest.raises(LesionfastError, match=f"{message}.*https://doi.org/10.7910/DVN/DBW86T"):
        download("ham10000", tmp_path, server.url)


def test_an_unknown_name_is_an_error():
    with pytest.raises(LesionfastError, match="'ham1000'. Did you mean 'ham10000'"):
        download("ham1000", "x")
