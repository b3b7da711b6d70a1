"""Input files of a batch, names of its outputs, and how processes share the work."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nst_jax.cli.batch_files import (
    IMAGE_SUFFIXES,
    Item,
    Source,
    expand,
    plan_items,
    process_share,
)
from nst_jax.errors import InputError

FILES = [
    *("photos/b.JPG", "photos/a.png", "photos/.hidden.png", "photos/notes.md", "photos/c.txt"),
    *("photos/in/d.webp", "photos/in/.e/f.png", "odd [1]/x.png", "odd 1/no.png", "q*?.png"),
    *("empty/note.md", "a[1].png", "a1.png"),
]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("photos/folder.png").mkdir()
    Path("photos/dead.png").symlink_to("nothing.png")
    return tmp_path


def found(*arguments):
    sources = expand([Path(argument) for argument in arguments], what="content")
    return [str(source.path) for source in sources], {source.searched for source in sources}


class TestExpand:
    @pytest.mark.parametrize(
        "argument, files, searched",
        [
            ("photos", ["photos/a.png", "photos/b.JPG"], True),
            ("odd [1]", ["odd [1]/x.png"], True),
            ("photos/b.JPG", ["photos/b.JPG"], False),
            ("photos/notes.md", ["photos/notes.md"], False),  # any suffix, because it is named
            ("a[1].png", ["a[1].png"], False),
            ("q*?.png", ["q*?.png"], False),
            ("a[2-1].png", None, True),
            ("a[0-9].png", ["a1.png"], True),
            ("photos/*", [f"photos/{name}" for name in ("a.png", "b.JPG", "c.txt", "notes.md")], 1),
            ("odd [1]/*.png", ["odd [1]/x.png"], True),
            ("odd [1-9]/*.png", ["odd 1/no.png"], True),
            ("photos/**/*.[pw]*", ["photos/a.png", "photos/in/d.webp"], True),
            ("photos/in/../*.png", ["photos/in/../a.png"], True),
        ],
    )
    @pytest.mark.parametrize("absolute", [False, True])
    def test_one_argument(self, tree, argument, files, searched, absolute):
        base = f"{tree}/" if absolute else ""
        if files is None:
            with pytest.raises(InputError, match="no file matches .*expected content images"):
                found(base + argument)
        else:
            assert found(base + argument) == ([base + file for file in files], {bool(searched)})

    def test_several_keep_their_order(self, tree):
        expected = ["q*?.png", "photos/a.png", "photos/b.JPG", "a1.png"]
        assert found("q*?.png", "photos", "a1.png") == (expected, {False, True})

    @pytest.mark.parametrize(
        "name, start, end",
        [("list.txt", b"", b"\n"), ("LIST.TXT", b"\xef\xbb\xbf", b"\r\n")],
        ids=["plain", "with byte order mark"],
    )
    def test_list(self, tree, name, start, end):
        (tree / "photos/é\u2028.png").touch()
        lines = ["a.png", "", "# b.JPG", "  ", "../a1.png ", f"{tree}/a[1].png", "é\u2028.png"]
        path = tree / "photos" / name
        path.write_bytes(start + end.join(line.encode() for line in lines))
        expected = ["photos/a.png", "photos/../a1.png", f"{tree}/a[1].png", "photos/é\u2028.png"]
        assert found(f"photos/{name}") == (expected, {False})

    @pytest.mark.parametrize(
        "data, message",
        [
            (b"# a.png\n\n", "list.txt names no content image"),
            (b"a1.png\n\nno.png\n", "list.txt, line 3: no.png does not exist: expected a content"),
            (b"photos", "list.txt, line 1: photos is a directory"),
            ("é.png".encode("latin-1"), "list.txt is not UTF-8 text: save it"),
            ("a1.png".encode("utf-16-le"), "list.txt is not UTF-8 text"),
        ],
    )
    def test_refused_lists(self, tree, data, message):
        Path("list.txt").write_bytes(data)
        with pytest.raises(InputError, match=message):
            found("a1.png", "list.txt")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ([], "no style image: expected files"),
            (["-"], "- is a single image: expected files"),
            (["empty"], "the folder empty contains no style image: .*.png .jpg"),
            (["a1.png", "no.png"], "no.png does not exist: expected a style image, a folder"),
            (["photos/in*"], r"no file matches photos/in\*: expected style images"),  # a folder
            (["photos/dead.png"], "dead.png does not exist"),
        ],
    )
    def test_arguments_without_a_file(self, tree, arguments, message):
        with pytest.raises(InputError, match=message):
            expand([Path(argument) for argument in arguments], what="style")

    def test_unreadable_lists_and_folders(self, tree, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        Path("list.txt").touch()
        for owner, method, name in ((Path, "read_bytes", "list.txt"), (os, "listdir", "photos")):
            monkeypatch.setattr(owner, method, refuse)
            with pytest.raises(InputError, match=f"cannot read the .* {name}: Permission denied"):
                found(name)

    def test_suffixes_are_those_of_readable_formats(self):
        formats = Image.registered_extensions()
        assert {formats[suffix] for suffix in IMAGE_SUFFIXES} <= set(Image.OPEN)


def sources(*paths, searched=False):
    return [Source(Path(path), searched) for path in paths]


OUT = Path("out")


class TestPlan:
    @pytest.mark.parametrize(
        "pairing, items",
        [
            ("all", [("p/a.jpg", (0, 1), "a__s+t.u.png"), ("b.png", (0, 1), "b__s+t.u.png")]),
            ("pairs", [("p/a.jpg", (0,), "a__s.png"), ("b.png", (1,), "b__t.u.png")]),
            (
                "grid",
                [("p/a.jpg", (0,), "a__s.png"), ("p/a.jpg", (1,), "a__t.u.png")]
                + [("b.png", (0,), "b__s.png"), ("b.png", (1,), "b__t.u.png")],
            ),
        ],
    )
    def test_items(self, pairing, items):
        contents, styles = sources("p/a.jpg", "b.png"), sources("q/s.jpg", "t.u.png")
        assert plan_items(contents, styles, pairing=pairing, folder=OUT) == [
            Item(Path(content), styles, OUT / name) for content, styles, name in items
        ]

    def test_a_file_in_several_pairs(self):
        contents, styles = sources("a.jpg", "a.jpg", "b.jpg"), sources("s.jpg", "t.jpg", "s.jpg")
        items = plan_items(contents, styles, pairing="pairs", folder=OUT)
        assert [item.output.name for item in items] == ["a__s.png", "a__t.png", "b__s.png"]

    def test_pairs_of_unequal_lists(self):
        with pytest.raises(InputError, match="1 styles for 2 contents"):
            plan_items(sources("a", "b"), sources("s"), pairing="pairs", folder=OUT)

    @pytest.mark.parametrize(
        "contents, styles, pairing, message",
        [
            ("a.jpg d/a.png", "s.jpg", "all", "a.jpg and d/a.png would both .* a__s.png: rename"),
            ("straße.jpg STRASSE.jpg", "s.jpg", "all", "would both"),
            ("e\u0301.jpg \u00e9.jpg", "s.jpg", "all", "would both"),
            (
                *("a.jpg a__b.jpg", "b__c.jpg c.jpg", "pairs"),
                "a.jpg with b__c.jpg and a__b.jpg with c.jpg would both .* a__b__c.png",
            ),
            ("a.jpg a.jpg", "s.jpg", "all", "^a.jpg is given twice: name each file once"),
            ("a.jpg", "s.jpg s.jpg", "grid", "^a.jpg with s.jpg is given twice"),
        ],
    )
    def test_two_outputs_of_the_same_name(self, contents, styles, pairing, message):
        lists = [sources(*names.split()) for names in (contents, styles)]
        with pytest.raises(InputError, match=message):
            plan_items(*lists, pairing=pairing, folder=OUT)

    @pytest.mark.parametrize("content, style", [("a.jpg", "out/a__s.png"), ("link.png", "x.png")])
    def test_an_output_that_is_an_input(self, tmp_path, monkeypatch, content, style):
        monkeypatch.chdir(tmp_path)
        OUT.mkdir()
        Path("x.png").touch()
        Path("link.png").symlink_to("out/link__x.png")
        (OUT / "link__x.png").touch()
        styles = sources("s.jpg", style) if style.startswith("out") else sources(style)
        with pytest.raises(InputError, match="out/.*png is an input: choose another --output-dir"):
            plan_items(sources(content), styles, pairing="grid", folder=tmp_path / "out")

    @pytest.mark.parametrize(
        "role, searched, folder",
        [
            ("content", True, "out"),
            ("style", True, "link"),
            ("content", True, "out/in/.."),
            ("content", False, "out"),
        ],
    )
    def test_a_search_in_the_output_folder(self, tmp_path, monkeypatch, role, searched, folder):
        monkeypatch.chdir(tmp_path)
        (OUT / "in").mkdir(parents=True)
        Path("link").symlink_to("out")
        lists = [sources("out/a.jpg", searched=searched), sources("out/in/b.png", searched=True)]
        lists = lists if role == "content" else lists[::-1]
        if searched:
            with pytest.raises(InputError, match="out/a.jpg was found in the output folder"):
                plan_items(*lists, pairing="all", folder=Path(folder))
        else:
            assert len(plan_items(*lists, pairing="all", folder=Path(folder))) == 1

    @pytest.mark.parametrize("exists", [True, False])
    def test_names_as_long_as_the_file_system_allows(self, tmp_path, exists):
        folder = tmp_path / "out" / "deep"
        if exists:
            folder.mkdir(parents=True)
        before = sorted(tmp_path.rglob("*"))
        longest, style = "a" * (255 - len("__s.png")), sources("s.jpg")
        plan_items(sources(longest), style, pairing="all", folder=folder)
        with pytest.raises(InputError, match="cannot write .*aa__s.png: File name too long"):
            plan_items(sources(longest + "a"), style, pairing="all", folder=folder)
        assert sorted(tmp_path.rglob("*")) == before

    def test_an_output_that_is_a_folder(self, tmp_path):
        (tmp_path / "a__s.png").mkdir()
        with pytest.raises(InputError, match="is a directory"):
            plan_items(sources("a.jpg"), sources("s.jpg"), pairing="all", folder=tmp_path)


class TestShares:
    @settings(max_examples=100, derandomize=True, database=None, deadline=None)
    @given(
        weights=st.lists(st.integers(0, 10**9), max_size=30)
        | st.lists(st.floats(0, 1e9, allow_subnormal=False), max_size=30),
        count=st.integers(1, 40),
    )
    def test_every_item_is_in_one_part_and_none_is_too_heavy(self, weights, count):
        items = list(range(len(weights)))
        parts = [process_share(items, weights, index=index, count=count) for index in range(count)]
        assert sum(parts, []) == items
        bound = sum(weights) / count + max(weights, default=0)
        assert all(sum(weights[item] for item in part) <= bound * (1 + 1e-9) for part in parts)

    @pytest.mark.parametrize(
        "weights, count, sizes",
        [([0] * 6, 3, [2, 2, 2]), ([3, 1, 1, 1], 2, [1, 3]), ([1, 1, 1, 3], 2, [3, 1])],
    )
    def test_parts_are_balanced(self, weights, count, sizes):
        parts = [
            process_share(weights, weights, index=index, count=count) for index in range(count)
        ]
        assert [len(part) for part in parts] == sizes
