"""The class table against the reference list, and every way a user's table can be wrong."""

import csv

import pytest

from fvaudit.models.classes import ImageClass, as_classes, load_classes
from fvaudit.records import AuditError


def test_packaged_table_has_the_ilsvrc_order(shared_data):
    with open(shared_data / "labels" / "imagenet1k_classes.tsv", encoding="utf-8") as file:
        reference = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    classes = load_classes()
    assert [(str(c.index), c.wnid) for c in classes] == [(r["index"], r["wnid"]) for r in reference]
    # another source of the same synsets' lemmas: most first names agree letter by letter
    same = sum(c.name == r["name"].split(",")[0] for c, r in zip(classes, reference, strict=True))
    assert same > 950


def test_packaged_table_facts():
    classes = load_classes()
    assert len(classes) == 1000
    assert [c.wnid for c in classes] == sorted(c.wnid for c in classes)
    assert classes[162] == ImageClass(162, "n02088364", "beagle")
    names = [c.name.lower() for c in classes]
    assert len(set(names)) == 1000
    assert {"crane (bird)", "crane (machine)", "maillot (tights)"} <= set(names)
    assert not [name for name in names if "_" in name or "," in name]


def test_user_table(tmp_path):
    table = tmp_path / "classes.tsv"
    table.write_text("# mine\nindex\twnid\tname\n0\tcat\tCat\n\n1\tdog\tgrosser Hund\n", "utf-8")
    assert load_classes(table) == (
        ImageClass(0, "cat", "Cat"),
        ImageClass(1, "dog", "grosser Hund"),
    )
    assert load_classes(str(table)) == load_classes(table)


def test_names_in_the_order_of_the_outputs(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("# mine\ncat\n\ngrosser Hund\n", "utf-8")
    wanted = (ImageClass(0, "cat", "cat"), ImageClass(1, "grosser Hund", "grosser Hund"))
    assert load_classes(names) == as_classes(names) == as_classes(["cat", "grosser Hund"]) == wanted
    assert as_classes(wanted) == wanted and as_classes(()) == as_classes(None) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "Expected the names of the classes, .*; number 0 is 3"),
        (["a", 1], "number 1 is 1"),
        ({"a": 0}, "number 0 is {'a': 0}"),
        ([ImageClass(1, "a", "a")], "number 0 is ImageClass"),
        (["a", "a"], "The list gives classes 0 and 1 the same name 'a'"),
    ],
)
def test_other_things_are_no_classes(given, message):
    with pytest.raises(AuditError, match=message):
        as_classes(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"starts with the columns \[\]; expected \['index', 'wnid', 'name'\]"),
        ("0\ta\tA\n", r"starts with the columns \['0', 'a', 'A'\].*Add the header"),
        ("index\tname\n0\tA\n", r"starts with the columns \['index', 'name'\]"),
        ("index\twnid\tname\n", "lists no classes below its header"),
        ("index\twnid\tname\n0\tA\n", r"Line 2 of .* has the cells \['0', 'A'\]"),
        ("index\twnid\tname\n0\ta\t \n", "none empty"),
        ("index\twnid\tname\n1\ta\tA\n", "Line 2 of .* has index '1'; expected 0"),
        ("index\twnid\tname\n0\ta\tA\n2\tb\tB\n", "Line 3 of .* has index '2'; expected 1"),
        ("index\twnid\tname\nx\ta\tA\n", "has index 'x'; expected 0"),
        ("index\twnid\tname\n0\ta\tA\n1\ta\tB\n", "classes 0 and 1 the same wnid 'a'"),
        ("A\nA\n", "classes.tsv gives classes 0 and 1 the same name 'A'"),
        ("index\twnid\tname\n0\ta\tA\n1\tb\tA\n", "classes 0 and 1 the same name 'A'"),
    ],
)
def test_wrong_tables(tmp_path, text, message):
    table = tmp_path / "classes.tsv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(AuditError, match=message):
        load_classes(table)


def test_unreadable_tables(tmp_path):
    with pytest.raises(AuditError, match="Cannot read the classes from .*absent.tsv"):
        load_classes(tmp_path / "absent.tsv")
    (tmp_path / "latin.tsv").write_bytes(b"index\twnid\tname\n0\ta\t\xff\n")
    with pytest.raises(AuditError, match="Cannot read the classes .*Expected a UTF-8 text file"):
        load_classes(tmp_path / "latin.tsv")
