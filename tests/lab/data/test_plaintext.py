"""Files of text: read as they were written, or refused by name with the byte and a remedy."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from dynattn.lab.data.plaintext import read_text, shown

TEXT = "Größe: “naïve” 東京 🙂\nsecond"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_with_a_mark_gives_the_text(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
)
def test_both_byte_orders(tmp_path, mark, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + TEXT.encode(encoding))
    assert read_text(path) == TEXT


def test_marks_of_joined_files_are_dropped_and_line_ends_are_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\ufeffone\r\ntwo\rthree\n\ufefffour\x0b\x0c\x85\u2028\u2029end".encode())
    assert read_text(path) == "one\ntwo\nthree\nfour\x0b\x0c\x85\u2028\u2029end"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("Größe".encode("latin-1"), r"byte 0xf6 at offset 2 is not; if it is cp1252, run: iconv -f cp1252 -t utf-8 "),
        ("abc ‘quoted’".encode("cp1252"), r"byte 0x91 at offset 4 is not; if it is cp1252"),
        ("Gruss und Kuss".encode("utf-16-le"), r"byte 0x00 at offset 1 is not; if it is utf-16le"),
        ("Gruss und Kuss".encode("utf-16-be"), r"byte 0x00 at offset 0 is not; if it is utf-16be"),
        (b"a line with a \0 in it", r"byte 0x00 at offset 14 is not; it looks like no text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"byte 0x89 at offset 0 is not; it looks like no text"),
        (b"\xef\xbb\xbfabc\xff", r"byte 0xff at offset 6 is not"),
        (b"\xff\xfea\0b", r"must be text in utf-16-le, as it begins: byte 0x62 at offset 4 is not; it is cut short"),
        (b"\xff\xfea\0\0\xd8b\0", r"in utf-16-le, as it begins: byte 0x00 at offset 4 is not; it is cut"),
        ("größe, ü".encode()[:-1], r"byte 0xc3 at offset 9 is not; it is cut short or damaged there: take"),
        ("café".encode("latin-1"), r"byte 0xe9 at offset 3 is not; if it is cp1252"),
        (b"\xff\xfea\0\0\0", r"must be text in utf-16-le, as it begins: byte 0x00 at offset 4"),
        ("größe".encode()[:-1] + b"\xc3", r"byte 0xc3 at offset 6"),
        (b"\xed\xa0\x80", r"byte 0xed at offset 0"),
    ],
)  # fmt: skip
def test_what_is_no_such_text_is_refused_with_the_byte(tmp_path, data, reason):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        read_text(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none.txt", "No such file"),
        (tmp_path / "loop.txt", "symbolic links"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_text(path)
    with pytest.raises(ValueError, match="it is a device"):
        read_text(tmp_path.__class__("/dev/zero"))


def test_names_that_are_no_text_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"gr\xf6sse.txt")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"gr\\xf6sse\.txt must be text") as caught:
        read_text(path)
    str(caught.value).encode()
    shown(path).encode()


def test_the_command_that_is_advised_makes_a_file_that_is_read(tmp_path):
    path = tmp_path / 'it\'s $HOME; a "name".txt'
    path.write_bytes("Größe".encode("cp1252"))
    with pytest.raises(ValueError, match="run: iconv") as caught:
        read_text(path)
    if shutil.which("iconv") is None:
        pytest.skip("there is no iconv here")
    command = str(caught.value).partition("run: ")[2].rpartition(", and read")[0]
    subprocess.run(["sh", "-c", command], check=True)
    assert read_text(tmp_path / f"{path.name}.utf-8") == "Größe"
