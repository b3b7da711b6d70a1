"""Records of a batch: lines that survive crashes, records in images, concurrent merging."""

import hashlib
import json
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from nst_jax.cli import batch_records
from nst_jax.cli.batch_records import (
    append_record,
    fingerprint,
    merge_manifests,
    part_name,
    read_record,
    read_records,
)
from nst_jax.errors import InputError
from nst_jax.images import save_image
from nst_jax.system.files import file_digest

PIXELS = np.random.default_rng(0).random((12, 9, 3), np.float32)


def record(name, **rest):
    return {"output": name, **rest}


class TestDigests:
    def test_of_a_file(self, tmp_path):
        data = bytes(range(256)) * 3000
        (tmp_path / "a").write_bytes(data)
        assert file_digest(tmp_path / "a") == hashlib.sha256(data).hexdigest()

    def test_of_plain_data(self):
        """It does not depend on the order of keys, nor on tuples or lists."""
        facts = {"steps": 3, "layers": {"b": 1.5, "a": [1, None]}, "name": "é\udc80"}
        turned = {"name": "é\udc80", "layers": {"a": (1, None), "b": 1.5}, "steps": 3}
        assert fingerprint(facts) == fingerprint(turned)
        assert len(fingerprint(facts)) == 64
        for other in ({"steps": 4}, {"layers": {"b": 1.5, "a": [None, 1]}}, {"x": 0}):
            assert fingerprint(facts | other) != fingerprint(facts)

    def test_stays_the_same_in_later_versions(self):
        """Otherwise the results in a folder would be computed again."""
        expected = hashlib.sha256(b'{"a":[1,0.1],"b":"\\u00e9"}\n').hexdigest()
        assert fingerprint({"b": "é", "a": [1, 0.1]}) == expected

    @pytest.mark.parametrize("value", [float("nan"), [{"a": float("-inf")}]])
    def test_numbers_that_json_lacks_are_refused(self, tmp_path, value):
        with pytest.raises(ValueError):
            fingerprint({"a": value})
        with pytest.raises(ValueError):
            append_record(tmp_path / "m", record("a.png", a=value))
        assert list(tmp_path.iterdir()) == []

    def test_other_objects_are_refused(self):
        with pytest.raises(TypeError):
            fingerprint({"a": np.float32(1)})


class TestLines:
    def test_round_trip(self, tmp_path):
        path = tmp_path / "manifest.jsonl"
        records = [record("é\u2028\n.png", n=1), record("b\udc80.png", deep={"a": [1, None]})]
        assert read_records(path) == []
        for one in records:
            append_record(path, one)
        assert read_records(path) == records
        assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2

    @pytest.mark.parametrize("cut", [1, 5, 12])
    def test_a_torn_line_loses_only_its_own_record(self, tmp_path, cut):
        path = tmp_path / "manifest.jsonl"
        for name in "abc":
            append_record(path, record(name))
        path.write_bytes(path.read_bytes()[:-cut])
        # If only the newline is missing, the last record is complete.
        left = ["a", "b", "c"] if cut == 1 else ["a", "b"]
        assert [one["output"] for one in read_records(path)] == left
        for name in "de":
            append_record(path, record(name))
        assert [one["output"] for one in read_records(path)] == [*left, "d", "e"]
        assert b"\n\n" not in path.read_bytes()

    @pytest.mark.parametrize(
        "line",
        [b"", b"no JSON", b"[1]", b'{"output": 3}', b'{"name": "a"}', b'{"output": "x"']
        + [b'{"output": "x", "a": NaN}', b'{"output": "x", "a": 1e999}', b"\xff\xfe"]
        + [b"[" * 100_000, '{"output": "x"}'.encode("utf-16")],
    )
    def test_foreign_lines_are_ignored(self, tmp_path, line):
        path = tmp_path / "manifest.jsonl"
        path.write_bytes(b'{"output": "a"}\r\n' + line + b'\n{"output": "b"}')
        assert read_records(path) == [record("a"), record("b")]
        merge_manifests(tmp_path)
        assert path.read_bytes() == b'{"output":"a"}\n{"output":"b"}\n'

    def test_unreadable_manifest(self, tmp_path):
        with pytest.raises(InputError, match="cannot read the manifest .*directory"):
            read_records(tmp_path)

    def test_threads(self, tmp_path):
        path = tmp_path / "manifest.jsonl"
        path.write_bytes(b'{"outp')

        def work(name):
            for number in range(25):
                append_record(path, record(f"{name}{number}", text="x" * 20_000))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, "abcd"))
        names = [one["output"] for one in read_records(path)]
        for name in "abcd":
            written = [other for other in names if other[0] == name]
            assert written == [f"{name}{number}" for number in range(25)]
        assert path.read_bytes().count(b"\n") == 101


def saved(path, text, **options):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("nst_jax", text)
    Image.fromarray((PIXELS * 255).astype(np.uint8)).save(path, pnginfo=info, **options)


class TestImages:
    def test_round_trip(self, tmp_path):
        path, text = tmp_path / "a.png", {"output": "a.png", "name": "é", "n": [1, None]}
        metadata = {"Software": "s", "nst_jax": json.dumps(text, ensure_ascii=False)}
        save_image(path, PIXELS, metadata=metadata)
        assert read_record(path) == text

    def test_pixels_are_not_decoded(self, tmp_path):
        path = tmp_path / "a.png"
        saved(path, '{"output": "a.png"}')
        before, after = path.read_bytes().split(b"IDAT")
        length = int.from_bytes(before[-4:], "big")
        chunk = b"IDAT" + bytes(length)  # with a valid checksum, but not a zlib stream
        checksum = zlib.crc32(chunk).to_bytes(4, "big")
        path.write_bytes(before + chunk + checksum + after[length + 4 :])
        assert read_record(tmp_path / "a.png") == {"output": "a.png"}

    @pytest.mark.parametrize("text", ["", "no JSON", "[1]", '{"a": NaN}'])
    def test_text_that_is_not_a_record(self, tmp_path, text):
        saved(tmp_path / "a.png", text)
        assert read_record(tmp_path / "a.png") is None

    def test_files_without_a_record(self, tmp_path):
        save_image(tmp_path / "none.png", PIXELS, metadata={"Software": "nst_jax"})
        save_image(tmp_path / "bare.png", PIXELS)
        save_image(tmp_path / "a.jpg", PIXELS, metadata={"nst_jax": "{}"})
        (tmp_path / "a.jpg").rename(tmp_path / "jpeg.png")
        (tmp_path / "text.png").write_text('{"nst_jax": 1}')
        (tmp_path / "empty.png").touch()
        (tmp_path / "folder.png").mkdir()
        for path in [*tmp_path.iterdir(), tmp_path / "missing.png"]:
            assert read_record(path) is None, path

    def test_every_truncation_and_change_is_detected(self, tmp_path):
        saved(tmp_path / "a.png", '{"output": "a.png"}')
        data = (tmp_path / "a.png").read_bytes()
        damaged = [data[:length] for length in range(len(data) - 4)]  # IEND's checksum is not read
        damaged += [
            data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            for place in range(0, len(data) - 12, 3)
        ]
        for number, one in enumerate(damaged):
            (tmp_path / "damaged.png").write_bytes(one)
            assert read_record(tmp_path / "damaged.png") is None, number


def write(path, *records):
    for one in records:
        append_record(path, one)


# The program of each process: append records to its part and merge at random moments.
PROCESS = """
import random, sys
from pathlib import Path
from nst_jax.cli.batch_records import append_record, merge_manifests, part_name
folder, index = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(index)
for number in range(40):
    append_record(folder / part_name(index, 3), {"output": f"{index}-{number:02}"})
    if chance.random() < 0.3:
        merge_manifests(folder)
merge_manifests(folder)
"""


class TestMerging:
    def test_one_record_for_each_output(self, tmp_path):
        old = [record("b", of="merged"), record("a", of="first"), record("a", of="last")]
        write(tmp_path / "manifest.jsonl", *old)
        write(tmp_path / part_name(0, 12), record("c", of="part 1"))
        write(tmp_path / part_name(11, 12), record("b", of="part 12"), record("0", of="part 12"))
        foreign = ("manifest-1-of-2.jsonl~", "old-manifest-1-of-2.jsonl", "manifest-a-of-2.jsonl")
        for other in foreign:
            write(tmp_path / other, record("foreign"))
        before = sorted(path.name for path in tmp_path.iterdir())
        for _ in range(2):  # merging again changes nothing
            assert merge_manifests(tmp_path) == tmp_path / "manifest.jsonl"
            assert read_records(tmp_path / "manifest.jsonl") == [
                *(record("0", of="part 12"), record("a", of="last"), record("b", of="part 12")),
                record("c", of="part 1"),
            ]
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_newer_parts_win(self, tmp_path):
        """Parts of an earlier run with another number of processes still count."""
        write(tmp_path / part_name(1, 2), record("a", of="old"))
        write(tmp_path / part_name(0, 3), record("a", of="new"))
        assert read_records(merge_manifests(tmp_path)) == [record("a", of="new")]
        write(tmp_path / part_name(1, 2), record("a", of="newest"))
        assert read_records(merge_manifests(tmp_path)) == [record("a", of="newest")]

    @pytest.mark.parametrize("merges, new", [(False, False), (True, True)])
    def test_a_part_that_changes_during_the_merge(self, tmp_path, monkeypatch, merges, new):
        """Another process finishes, and may merge, before this one has replaced the file."""
        mine, other = tmp_path / part_name(0, 2), tmp_path / part_name(1, 2)
        write(mine, record("a"))
        if not new:
            write(other, record("b"))
        plain, calls = batch_records.atomic_write, []

        def late(path):
            calls.append(path)
            if len(calls) == 1:
                write(other, record("c"))
                if merges:
                    merge_manifests(tmp_path)
            return plain(path)

        monkeypatch.setattr(batch_records, "atomic_write", late)
        merge_manifests(tmp_path)
        names = [one["output"] for one in read_records(tmp_path / "manifest.jsonl")]
        assert names == (["a", "c"] if new else ["a", "b", "c"])
        assert len(calls) == 2 + merges

    def test_processes(self, tmp_path):
        write(tmp_path / "manifest.jsonl", record("earlier"))
        command = [sys.executable, "-c", PROCESS, tmp_path]
        processes = [subprocess.Popen([*command, str(index)]) for index in range(3)]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
        expected = [f"{index}-{number:02}" for index in range(3) for number in range(40)]
        names = [one["output"] for one in read_records(tmp_path / "manifest.jsonl")]
        assert names == [*expected, "earlier"]
        assert len(list(tmp_path.iterdir())) == 4
