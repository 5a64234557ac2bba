"""Formats: what is written is read, by path and from S3, and every bad row says what it is."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytag import storage
from raytag.errors import DataError, SettingsError, StorageError
from raytag.text.formats import ReadResult, read_examples, write_jsonl, write_rejected
from raytag.text.spans import Entity, Example

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TABLE = {
    "wnut17": (["wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"],
               [3394, 1009, 1287], [1975, 836, 1079], 6, "IOB2"),
    "wikigold": (["wikigold.conll.txt"], [1696], [3558], 4, "IOB1"),
    "crossner-politics": (["train.txt", "dev.txt", "test.txt"], [200, 541, 651],
                          [1304, 3482, 4209], 9, "IOB2"),
    "crossner-science": (["train.txt", "dev.txt", "test.txt"], [200, 450, 543],
                         [1075, 2538, 3089], 17, "IOB2"),
    "ncbi-disease": (["train.tsv", "devel.tsv", "test.tsv"], [5424, 923, 940],
                     [5134, 787, 960], 1, "IOB2"),
    "bc5cdr": (["train.tsv", "devel.tsv", "test.tsv"], [4560, 4581, 4797],
               [9385, 9593, 9809], 2, "IOB2"),
}  # fmt: skip

TIM = [("Tim Cook", "PER"), ("Seoul", "LOC")]


def found(example: Example) -> list[tuple[str, str]]:
    return [(example.text[e.start : e.end], e.label) for e in example.entities]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file; gives its path."""

    def writer(content: str | bytes, name: str = "data") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return writer


# Public data


@pytest.mark.parametrize("name", TABLE)
def test_counts_equal_the_table(data_folder: Path, name: str) -> None:
    files, sentences, entities, types, scheme = TABLE[name]
    results = [read_examples(str(data_folder / "ner" / name / file)) for file in files]
    assert [len(result.examples) for result in results] == sentences
    assert [sum(len(e.entities) for e in result.examples) for result in results] == entities
    assert len({e.label for r in results for x in r.examples for e in x.entities}) == types
    assert {result.scheme for result in results} == {scheme}
    assert all(result.counts == {} and not result.rejected for result in results)


def test_btc_counts_equal_the_table_with_what_is_passed_over(data_folder: Path) -> None:
    results = [read_examples(str(data_folder / "ner" / "btc" / f"{s}.conll")) for s in "abefgh"]
    passed = sum(r.counts.get("sentences without a token passed over", 0) for r in results)
    assert passed == 1
    assert sum(len(result.examples) for result in results) + passed == 9339
    assert sum(len(e.entities) for r in results for e in r.examples) == 14885


# CoNLL


@pytest.mark.parametrize(
    "content",
    [
        "Tim B-PER\nCook I-PER\nin O\nSeoul B-LOC\n",
        "Tim\tB-PER\r\nCook\tI-PER\r\nin\tO\r\nSeoul\tB-LOC\r\n\r\n",
        "\ufeffTim I-PER\nCook I-PER\nin O\nSeoul I-LOC",
        "Tim NNP B-NP B-PER\nCook NNP I-NP E-PER\nin IN B-PP O\nSeoul NNP B-NP S-LOC\n",
        "Tim _ _ B-PER\nCook _ _ L-PER\nin _ _ O\nSeoul _ _ U-LOC\n",
        "# id 17 domain=en\nTim\t\tB-PER\nCook\t\tI-PER\nin\t\tO\nSeoul\t\tB-LOC\n",
        "\n \n\t\nTim B-PER \nCook I-PER\nin O\nSeoul B-LOC\n\n\n",
    ],
)
def test_conll_of_any_columns_scheme_and_line_end(write: Callable[..., str], content: str) -> None:
    result = read_examples(write(content))
    assert result.format == "conll"
    assert [example.text for example in result.examples] == ["Tim Cook in Seoul"]
    assert found(result.examples[0]) == TIM


def test_conll_documents_are_groups(write: Callable[..., str]) -> None:
    content = "-DOCSTART- -X- -X- O\n\nA O\n\nB O\n-DOCSTART- O\nC O\n"
    examples = read_examples(write(content, "f")).examples
    assert [(x.id, x.group) for x in examples] == [("f:3", "f#1"), ("f:5", "f#1"), ("f:7", "f#2")]
    alone = read_examples(write("A O\n\nB O\n", "g")).examples
    assert [(x.id, x.group) for x in alone] == [("g:1", "g:1"), ("g:3", "g:3")]


def test_conll_orphans_are_read_and_counted(write: Callable[..., str]) -> None:
    result = read_examples(write("a B-X\nb O\nc I-X\n\nd B-X\ne I-Y\n"))
    assert [found(x) for x in result.examples] == [
        [("a", "X"), ("c", "X")],
        [("d", "X"), ("e", "Y")],
    ]
    assert result.counts == {"entities that break IOB2, read leniently": 2}
    assert "tags in IOB2" in result.notes


def test_conll_offsets_count_characters(write: Callable[..., str]) -> None:
    (example,) = read_examples(write("é🙂 O\nZoë B-PER\nŁuk I-PER\n字 B-X\n")).examples
    assert example.text == "é🙂 Zoë Łuk 字"
    assert example.entities == (Entity(3, 10, "PER"), Entity(11, 12, "X"))


def test_line_ends_are_no_part_of_a_rejected_row(write: Callable[..., str]) -> None:
    result = read_examples(write("a O\r\nb\r\n\r\nc O\r\n"), on_bad="set-aside")
    assert result.rejected[0].raw == "a O\nb"


def test_conll_lines_end_only_where_files_say(write: Callable[..., str]) -> None:
    (example,) = read_examples(write("a\u2028b B-X\nc\x85 O\n\u3000d O\n")).examples
    assert found(example) == [("a\u2028b", "X")]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("a O\nb\n", 2, "'b' has one column; write a token, then its tag"),
        ("a O\nb PER\n", 2, "'PER' is not a tag; write O, or a prefix and a type like B-PER"),
        ("a O\nb\tB-\n", 2, "'B-' is not a tag; write O, or a prefix and a type like B-PER"),
        ("a O\n\tB-X\n", 2, "no token before the tag B-X; give the row its token"),
        (b"a O\n\xe9 O\n", 2, "byte 0xe9 at column 1 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_conll_bad_rows(
    write: Callable[..., str], content: str | bytes, line: int, reason: str
) -> None:
    block = content if isinstance(content, bytes) else content.encode()
    uri = write(b"x B-X\n\n" + block + b"\nz O\n")
    with pytest.raises(DataError) as caught:
        read_examples(uri)
    assert str(caught.value) == f"{uri}:{line + 2}: {reason}"
    result = read_examples(uri, on_bad="set-aside")
    assert [example.text for example in result.examples] == ["x", "z"]
    (bad,) = result.rejected
    assert (bad.file, bad.line, bad.reason) == (uri, line + 2, reason)
    assert bad.raw == block.decode(errors="replace").rstrip("\n")


# JSON lines


def row(**columns: Any) -> str:
    return json.dumps(columns, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [
        row(text="Tim Cook in Seoul", entities=[
            {"start": 0, "end": 8, "label": "PER"}, {"start": 12, "end": 17, "label": "LOC"}]),
        row(id=7, document="d", text="Tim Cook in Seoul", spans=[
            {"start": 12, "end": 17, "type": "LOC", "text": "Seoul"},
            {"start": 0, "end": 8, "type": "PER"}]),
        row(tokens=["Tim", "Cook", "in", "Seoul"], ner_tags=["B-PER", "I-PER", "O", "B-LOC"]),
        row(tokens=["Tim", "Cook", "in", "Seoul"], tags=["I-PER", "I-PER", "O", "I-LOC"]),
    ],
)  # fmt: skip
def test_jsonl_of_any_shape(write: Callable[..., str], content: str) -> None:
    result = read_examples(write(f"\ufeff{content}\r\n\n", "f"))
    assert result.format == "jsonl"
    assert found(result.examples[0]) == TIM
    wanted = ("7", "d") if "document" in content else ("f:1", "f:1")
    assert (result.examples[0].id, result.examples[0].group) == wanted


OFFSETS = "offsets count characters from 0, the end excluded"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{'text': 1}", "not JSON (...); write one object per line"),
        ("[" * 100_000, "not JSON (...); write one object per line"),
        ("[1]", "not a JSON object; write one object per line"),
        ('{"text": "é', "not JSON (...); write one object per line"),
        (b'{"text": "\xe9"}', "byte 0xe9 at column 11 is not UTF-8; save the file as UTF-8"),
        (row(entities=[]), 'no "text"; give each row a text, or tokens and ner_tags'),
        (row(text=3, entities=[]), 'no "text"; give each row a text, or tokens and ner_tags'),
        (row(text="ab"), 'no "entities"; write "entities": [] for a text without any'),
        (row(text="ab", entities=None), 'no "entities"; write "entities": [] for a text ...'),
        (row(text="ab", entities="x"), '"entities" is no list; write [...]'),
        (row(text="ab", entities=[3]), "an entity is no object; write {...}"),
        (row(text="ab", entities=[{"start": 0, "end": 3, "label": "X"}]),
         f"entity 0:3 is not a stretch of the text of 2 characters; {OFFSETS}"),
        (row(text="ab", entities=[{"start": 1, "end": 1, "label": "X"}]),
         f"entity 1:1 is not a stretch of the text of 2 characters; {OFFSETS}"),
        (row(text="ab", entities=[{"start": -1, "end": 1, "label": "X"}]),
         f"entity -1:1 is not a stretch of the text of 2 characters; {OFFSETS}"),
        (row(text="ab", entities=[{"start": 0.5, "end": 1, "label": "X"}]),
         '"start" of an entity is 0.5; it must be a whole number'),
        (row(text="ab", entities=[{"start": 0, "end": True, "label": "X"}]),
         '"end" of an entity is True; it must be a whole number'),
        (row(text="ab", entities=[{"start": 0, "label": "X"}]),
         '"end" of an entity is None; it must be a whole number'),
        (row(text="ab", entities=[{"start": 0, "end": 1}]),
         'entity 0:1 has no "label"; give it a type'),
        (row(text="ab", entities=[{"start": 0, "end": 1, "label": " "}]),
         'entity 0:1 has no "label"; give it a type'),
        (row(text="é🙂Bo", entities=[{"start": 3, "end": 4, "label": "X", "text": "Bo"}]),
         "entity 3:4 says 'Bo' but 'o' stands there; offsets count characters (code points) "
         "from 0, the end excluded"),
        ('{"text": "a\\ud800", "entities": []}',
         "half a surrogate pair at character 1; mend the text"),
        (row(id=[1], text="ab", entities=[]), '"id" is neither a string nor a whole number; ...'),
        (row(tokens=["a"], ner_tags=["O", "O"]), "1 tokens but 2 tags; give each token one tag"),
        (row(tokens=["a"], ner_tags=[3]), 'no "ner_tags" in words; write ["B-PER", "I-PER"]'),
        (row(tokens=["a"], ner_tags=["PER"]), "'PER' is not a tag; write O, or a prefix ..."),
        (row(tokens=["a", " "], ner_tags=["O", "O"]), '"tokens" is no list of words; ...'),
    ],
)  # fmt: skip
def test_jsonl_bad_rows(write: Callable[..., str], content: str | bytes, reason: str) -> None:
    block = content if isinstance(content, bytes) else content.encode()
    good = row(text="good", entities=[]).encode()
    uri = write(good + b"\n\n" + block + b"\n" + good)
    with pytest.raises(DataError) as caught:
        read_examples(uri)
    result = read_examples(uri, on_bad="set-aside")
    assert len(result.examples) == 2
    (bad,) = result.rejected
    assert str(bad) == str(caught.value) == f"{uri}:3: {bad.reason}"
    begin, dots, end = reason.partition("...")
    assert bad.reason.startswith(begin)
    assert bad.reason.endswith(end) if dots else bad.reason == reason
    assert bad.raw == block.decode(errors="replace")


def test_overlaps_are_flattened_and_counted_or_rejected(write: Callable[..., str]) -> None:
    spans = [(0, 3, "A"), (2, 8, "B"), (7, 9, "C"), (2, 8, "B")]
    entities = [{"start": a, "end": b, "label": label} for a, b, label in spans]
    uri = write(row(text="x" * 10, entities=entities))
    result = read_examples(uri)
    assert result.examples[0].entities == (Entity(2, 8, "B"),)
    assert result.counts == {"repeated entities dropped": 1, "overlapping entities dropped": 2}
    with pytest.raises(
        DataError, match=r":1: entity 0:3 \(A\) overlaps another; make the entities"
    ):
        read_examples(uri, overlaps="reject")


def test_ids_given_twice_are_counted(write: Callable[..., str]) -> None:
    rows = [row(id=name, text="x", entities=[]) for name in ("a", "b", "a")]
    result = read_examples(write("\n".join(rows)))
    assert result.counts == {"ids that occur more than once": 1}
    assert len(result.examples) == 3


examples = st.builds(
    lambda text, start, length, label: Example(
        "i",
        text,
        (Entity(start, min(len(text), start + length), label),) if start < len(text) else (),
    ),
    st.text(max_size=20),
    st.integers(0, 20),
    st.integers(1, 5),
    st.text(min_size=1, max_size=5).filter(str.strip),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(examples, min_size=1, max_size=3))
def test_what_is_written_as_jsonl_is_read(tmp_path: Path, made: list[Example]) -> None:
    uri = str(tmp_path / "out.jsonl")
    write_jsonl(uri, made)
    assert list(read_examples(uri).examples) == made


def test_rejected_rows_are_written_for_people(write: Callable[..., str], tmp_path: Path) -> None:
    result = read_examples(write("é O\nb\n"), on_bad="set-aside")
    target = tmp_path / "rejected.jsonl"
    write_rejected(str(target), result.rejected)
    assert json.loads(target.read_text(encoding="utf-8"))["raw"] == "é O\nb"


# Parquet and data sets


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_parquet_of_spans_and_of_tags(tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 8, "label": "PER"}, {"start": 12, "end": 17, "label": "LOC"}]
    by_text = parquet(tmp_path / "a", [{"id": "x", "text": "Tim Cook in Seoul", "entities": spans}])
    words = {"tokens": ["Tim", "Cook", "in", "Seoul"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
    by_tags = parquet(tmp_path / "b", [words])
    for uri, name in ((by_text, "x"), (by_tags, "b:1")):
        result = read_examples(uri)
        assert result.format == "parquet"
        assert found(result.examples[0]) == TIM
        assert result.examples[0].id == name


def test_parquet_bad_rows_and_files(tmp_path: Path) -> None:
    good = {"text": "ab", "entities": [{"start": 0, "end": 1, "label": "X"}]}
    bad = {"text": "ab", "entities": [{"start": 0, "end": 9, "label": "X"}]}
    uri = parquet(tmp_path / "p", [good, bad, good])
    with pytest.raises(DataError, match=f"^{uri}:2: entity 0:9 is not a stretch"):
        read_examples(uri)
    result = read_examples(uri, on_bad="set-aside")
    assert [example.id for example in result.examples] == ["p:1", "p:3"]
    assert [bad.line for bad in result.rejected] == [2]
    (tmp_path / "torn").write_bytes(Path(uri).read_bytes()[:200])
    with pytest.raises(DataError, match=r"torn:1: not readable Parquet \(.*\); write it anew"):
        read_examples(str(tmp_path / "torn"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with splits as Hugging Face saves it, its tags numbers with names."""
    import datasets

    names = ["O", "B-PER", "I-PER", "B-LOC"]
    features = datasets.Features(
        tokens=datasets.List(datasets.Value("string")),
        ner_tags=datasets.List(datasets.ClassLabel(names=names)),
    )
    rows = {"tokens": [["Tim", "Cook", "in", "Seoul"], ["x"]], "ner_tags": [[1, 2, 0, 3], [0]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path_factory.mktemp("saved") / "set"
    datasets.DatasetDict(validation=data, other=data.select([1])).save_to_disk(str(folder))
    return folder


def test_a_data_set_with_named_tags(saved: Path) -> None:
    result = read_examples(f"{saved}#validation")
    assert result.format == "dataset"
    assert [found(example) for example in result.examples] == [TIM, []]
    assert result.examples[0].id == "set#validation:1"
    assert len(read_examples(str(saved / "other")).examples) == 1


def test_a_data_set_needs_the_right_split(saved: Path, write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="set: name one of its splits, #validation, #other"):
        read_examples(str(saved))
    with pytest.raises(DataError, match="name one of its splits"):
        read_examples(f"{saved}#dev")
    with pytest.raises(DataError, match="has no splits; leave #validation out"):
        read_examples(f"{saved / 'other'}#validation")
    with pytest.raises(DataError, match="a data set is a folder that save_to_disk made"):
        read_examples(write("a O"), format="dataset")


# Files, folders, S3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", ": holds no examples; check that it is the file you mean"),
        ("\n\n", ": holds no examples; check that it is the file you mean"),
        ("[{}]", r":1: a JSON array; write one object per line \(jq -c '.\[\]'\)"),
        ("Once upon a time\n", ":1: cannot tell the format from 'Once upon a time'; give CoNLL"),
        ("a,b\nTim,B-PER\n", ":1: cannot tell the format from 'a,b'; give CoNLL"),
        ("a O".encode("utf-16"), ":1: this is UTF-16; save it as UTF-8"),
        (gzip.compress(b"a O")[:-9], r": its gzip stream is broken \(.*\); fetch it again"),
        (b"ARROW1\0\0", ": an Arrow file; name the folder of the data set it is part of"),
    ],
)
def test_files_of_no_known_format(
    write: Callable[..., str], content: str | bytes, reason: str
) -> None:
    uri = write(content)
    with pytest.raises(DataError, match=f"^{uri}{reason}"):
        read_examples(uri)


def test_choices_are_checked(write: Callable[..., str]) -> None:
    uri = write("a O")
    with pytest.raises(SettingsError, match="format='csv' is unknown; choose from auto, conll"):
        read_examples(uri, format="csv")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="on_bad='skip' is unknown; choose from raise, set-as"):
        read_examples(uri, on_bad="skip")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="no such file; did you mean data"):
        read_examples(uri[:-1] + "e")
    with pytest.raises(DataError, match="no data set, so it has no split; leave #train out"):
        read_examples(f"{Path(uri).parent}#train")


def test_a_json_looking_token_is_still_conll(write: Callable[..., str]) -> None:
    assert read_examples(write("{ O\n} O\n")).examples[0].text == "{ }"


def test_a_folder_is_read_file_by_file(write: Callable[..., str], tmp_path: Path) -> None:
    write("a O", "part-0")
    write(gzip.compress(b"b O"), "part-1.gz")
    write("nonsense", "_SUCCESS")
    write("nonsense", ".hidden")
    assert [x.id for x in read_examples(str(tmp_path)).examples] == ["part-0:1", "part-1.gz:1"]


def test_every_format_is_read_from_s3(s3: "S3Client", saved: Path, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="corpora")
    words = {"tokens": ["Tim", "Cook", "in", "Seoul"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]}
    lines = "\n".join(map(" ".join, zip(words["tokens"], words["ner_tags"], strict=True)))
    table = Path(parquet(tmp_path / "table", [words])).read_bytes()
    contents = {"conll": lines.encode(), "jsonl": row(**words).encode(), "parquet": table}
    for name, content in contents.items():
        for uri, data in (
            (f"s3://corpora/{name}", content),
            (f"s3://corpora/{name}.gz", gzip.compress(content)),
        ):
            storage.write_bytes(uri, data)
            check_tim(read_examples(uri), name)
    storage.upload_folder(saved, "s3://corpora/set")
    check_tim(read_examples("s3://corpora/set#validation"), "dataset")
    write_jsonl("s3://corpora/out.jsonl", read_examples("s3://corpora/conll").examples)
    check_tim(read_examples("s3://corpora/out.jsonl"), "jsonl")


def check_tim(result: ReadResult, format: str) -> None:
    assert result.format == format
    assert found(result.examples[0]) == TIM
