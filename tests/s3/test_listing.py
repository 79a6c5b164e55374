"""Pages of listings as many stores write them, and long listings from a server with faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagger.storage.faults import WrongAnswer
from stagger.storage.s3.engine import Page
from stagger.storage.s3.listing import any_page, page_of, plain_page
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server

SPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

#: The elements of an object as stores order them; {} is for key, ETag and size.
OBJECTS = {
    "aws": "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{}&quot;</ETag>"
    "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>{}</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>",
    "ceph": '<Contents><Key>{}</Key><LastModified>2026</LastModified><ETag>"{}"</ETag><Size>{}</Size><StorageClass/>'
    "<Owner><ID>me</ID><DisplayName>Me</DisplayName></Owner><Type>Normal</Type></Contents>",
    "google": "<Contents>\n <Key>{}</Key>\n <Generation>1</Generation>\n <MetaGeneration>1</MetaGeneration>\n"
    ' <LastModified>2026</LastModified>\n <ETag>"{}"</ETag>\n <Size>{}</Size>\n</Contents>\n',
    "entities": "<Contents><Key>{}</Key><ETag>&#34;{}&#34;</ETag><Size>{}</Size></Contents>",
}

KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("/ +%&<>\"'~é\U00010000"), min_size=1)


def body_of(kind: str, keys: list[str], folders: list[str], token: str, *, url: bool) -> bytes:
    def text(name: str) -> str:
        return quote(name) if url else escape(name)

    rows = "".join(OBJECTS[kind].format(text(key), f"{at:032x}", at) for at, key in enumerate(keys))
    rows += "".join(f"<CommonPrefixes><Prefix>{text(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    head = f"<Name>b</Name><IsTruncated>{'true' if token else 'false'}</IsTruncated>"
    head += f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    head += "<EncodingType>url</EncodingType>" if url else ""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{SPACE}">{head}{rows}</ListBucketResult>'
    return xml.encode()


@given(
    kind=st.sampled_from(sorted(OBJECTS)),
    keys=st.lists(KEYS, max_size=5),
    folders=st.lists(KEYS, max_size=3),
    token=st.sampled_from(["", "1/abc+def=="]),
    url=st.booleans(),
)
def test_a_page_is_read_whatever_its_keys(
    kind: str, keys: list[str], folders: list[str], token: str, url: bool
) -> None:
    body = body_of(kind, keys, folders, token, url=url)
    versions = [f'"{at:032x}"' for at in range(len(keys))]
    wanted = Page(keys, list(range(len(keys))), versions, token, folders)
    assert page_of(body) == any_page(ElementTree.fromstring(body), f"{{{SPACE}}}") == wanted
    if url and kind != "entities":
        assert plain_page(body) == wanted


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\0%+"), min_size=1), max_size=5))
def test_encoded_keys_may_hold_any_character(keys: list[str]) -> None:
    page = plain_page(body_of("aws", keys, [], "", url=True))
    assert page is not None
    assert page.names == keys


@given(st.lists(st.sampled_from(["aws", "ceph", "google", "swapped", "few"]), min_size=1, max_size=6), st.booleans())
def test_objects_with_different_elements_are_not_mixed_up(kinds: list[str], comment: bool) -> None:
    """As many elements in another order, and others: what the fast way does not take is left to the next."""
    more = {
        "swapped": OBJECTS["aws"].replace("<LastModified>2026-01-01T00:00:00.000Z</LastModified>", "")
        + "<Contents><Size>7</Size><ETag>&quot;e&quot;</ETag><Key>z</Key><A>1</A><B>2</B></Contents>",
        "few": "<Contents><Key>{}</Key><ETag>&quot;{}&quot;</ETag><Size>{}</Size></Contents>",
    }
    rows = "".join({**OBJECTS, **more}[kind].format(f"k{at}", f"e{at}", at) for at, kind in enumerate(kinds))
    rows += "<!-- <Contents><Key>no</Key></Contents> -->" * comment
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{SPACE}">{rows}</ListBucketResult>'
    assert page_of(body.encode()) == any_page(ElementTree.fromstring(body), f"{{{SPACE}}}")


@given(st.integers(1, 10**6))
def test_a_page_that_is_cut_off_is_no_page(at: int) -> None:
    body = body_of("aws", [f"key-{number}" for number in range(50)], ["d/"], "", url=True)
    assert page_of(body[: at % len(body)]) is None
    assert page_of(b"") is None
    assert page_of(b"<html><body>Log in</body></html>") is None
    assert page_of(b"<Error><Code>InternalError</Code></Error>") is None


def test_an_object_without_a_size_is_a_wrong_answer() -> None:
    body = body_of("aws", ["a", "b"], [], "", url=True)
    for bad in (body.replace(b"<Size>1</Size>", b""), body.replace(b"<Size>1<", "<Size>\u0661<".encode())):
        with pytest.raises(WrongAnswer, match="without a key or a size"):
            page_of(bad)
    with pytest.raises(WrongAnswer, match="names no token"):
        page_of(body.replace(b"<IsTruncated>false", b"<IsTruncated>true"))


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("s3fs_engine", "plain_requests", "key_ranges"):
        monkeypatch.setattr(f"stagger.storage.s3.{place}.PAGE_KEYS", 10)


@pytest.mark.usefixtures("short_pages")
def test_a_long_listing_under_faults_has_each_key_once(storage: Storage, s3: S3Server) -> None:
    s3.add_virtual("data", "long/flat/part-", 700, 11)
    s3.add_virtual("data", "long/other/x/part-", 300, 12)
    wanted = [f"flat/part-{number:08d}" for number in range(700)] + [
        f"other/x/part-{number:08d}" for number in range(300)
    ]
    s3.reset()
    s3.set_faults(p_503=0.1, p_500=0.05, p_reset=0.1)
    found = list(storage.walk("s3://data/long"))
    assert [entry.name for entry in found] == wanted
    assert {(entry.name.startswith("flat"), entry.size) for entry in found} == {(True, 11), (False, 12)}
    assert all(entry.version for entry in found)
    assert [entry.name for entry in storage.list("s3://data/long/flat")] == [name[5:] for name in wanted[:700]]
    assert storage.list("s3://data/long") == []
    assert s3.stats()["connections"]["peak"] > 4  # In several places at once.


@pytest.mark.usefixtures("short_pages", "heeds_ctrl_c")
def test_ctrl_c_ends_a_long_listing_at_once_though_an_answer_does_not_come(storage: Storage, s3: S3Server) -> None:
    s3.add_virtual("data", "stuck/part-", 700, 11)
    s3.set_faults(hold=20)

    def press() -> None:
        while not s3.held():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        list(storage.walk("s3://data/stuck"))
    assert s3.held()  # The answer has not come.
    s3.release()
