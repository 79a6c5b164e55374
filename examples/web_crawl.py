"""Makes a small web crawl to try pipelines on: WARC files with pages of several languages, good and bad.

Run it with: python examples/web_crawl.py FOLDER [--pages 400] [--files 8] [--seed 0]. It needs Python only, downloads
nothing, and makes the same files from the same numbers. The hosts are below example.com, example.org and example.net,
which belong to nobody (RFC 2606), and the addresses are reserved for documentation (RFC 5737).
"""

from __future__ import annotations

import argparse
import gzip
import html
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

# fmt: off
#: Language -> the parts of its sentences. A sentence takes one phrase of each part, in their order.
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "de": (
        ("Die alte Brücke", "Unsere Werkstatt", "Die Gemeinde", "Eine junge Frau", "Die neue Schule", "Jede Mühle"),
        ("hat im Herbst", "wird nach der Ernte", "war schon immer", "soll in diesem Jahr", "wurde vor dem Krieg"),
        (
            "mit großer Sorgfalt", "ohne fremde Hilfe", "trotz der hohen Kosten", "für alle Besucher",
            "am Ufer des Flusses",
        ),
        ("erneuert", "beschrieben", "wieder geöffnet", "von den Nachbarn gelobt", "aus Holz gebaut", "nicht vergessen"),
    ),
    "en": (
        ("The", "Every", "Our", "Another", "Their", "That", "One", "No", "This", "Her", "His", "Each"),
        (
            "old", "quiet", "northern", "careful", "broken", "wooden", "narrow", "famous", "cheap", "patient",
            "foreign", "early", "heavy", "curious", "grey", "local", "royal", "distant", "clever", "modern", "hidden",
            "simple", "rusty", "gentle", "proud",
        ),
        (
            "bridge", "teacher", "garden", "engine", "letter", "harbour", "village", "clock", "painter", "river",
            "market", "student", "library", "kitchen", "farmer", "tower", "captain", "valley", "museum", "doctor",
            "orchard", "railway", "theatre", "island", "baker", "window", "station", "forest", "sailor", "school",
            "workshop", "neighbour", "chapel", "meadow", "printer", "lantern", "cottage", "journal", "miller", "canal",
        ),
        (
            "changed", "followed", "remembered", "carried", "described", "repaired", "answered", "crossed", "feared",
            "visited", "supplied", "counted", "borrowed", "watched", "painted", "measured", "admired", "refused",
            "protected", "reached", "surprised", "needed", "replaced", "divided", "opened", "sheltered", "explained",
        ),
        ("the", "a", "its", "some", "another", "the only", "the first", "the last", "nearly every", "the same"),
        (
            "winter road", "stone wall", "evening train", "small boat", "long story", "summer house", "glass door",
            "wheat field", "iron gate", "birthday cake", "paper map", "mountain path", "copper coin", "wool coat",
            "apple tree", "fishing net", "spring flood", "church bell", "candle light", "market day", "lost key",
            "coal mine", "silver spoon", "border town", "night watch", "rope ladder", "open fire", "brass band",
            "sugar mill", "water wheel", "post office", "cloth bag", "barley soup", "corner shop", "salt marsh",
        ),
        (
            "with great care", "in the morning", "before the war", "for many years", "without a word", "near the coast",
            "after the storm", "by accident", "that year", "at the end of the week", "to the north", "as often as not",
            "under the old law", "of their own will", "in spite of the rain", "with a borrowed hammer", "on foot",
            "against all advice", "between two seasons", "during the harvest", "from the other side", "once more",
            "beyond the hill", "for the sake of peace", "and nobody complained", "and it helped", "because it had to",
        ),
    ),
    "es": (
        ("El viejo puente", "La maestra", "El jardín del pueblo", "Una carta", "El mercado", "La biblioteca"),
        ("cambió durante el invierno", "fue reparado por los vecinos", "no tenía ningún precio", "se abrió de nuevo"),
        ("con mucho cuidado", "antes de la guerra", "cerca de la costa", "sin decir una palabra", "en otra ciudad"),
        ("porque nadie lo esperaba", "y todos lo recuerdan", "como en los viejos tiempos", "para los niños"),
    ),
    "fr": (
        ("Le vieux pont", "La maîtresse", "Le jardin du village", "Une lettre", "Le marché", "La bibliothèque"),
        ("a changé pendant l'hiver", "fut réparé par les voisins", "n'avait aucun prix", "est ouvert depuis hier"),
        ("avec beaucoup de soin", "avant la guerre", "près de la côte", "sans dire un mot", "dans une autre ville"),
        ("parce que personne ne l'attendait", "et tout le monde s'en souvient", "comme autrefois", "pour les enfants"),
    ),
    "ja": (
        ("古い橋は", "先生は", "村の庭は", "その手紙は", "市場は", "図書館は", "小さな駅は"),
        ("冬のあいだに", "戦争の前に", "海の近くで", "何も言わずに", "隣の町で", "毎年"),
        ("静かに", "とても丁寧に", "もう一度", "子どものために", "誰にも知られず"),
        ("直された", "開かれた", "変わってしまった", "忘れられた", "描かれた"),
    ),
    "pl": (
        ("Stary most", "Nauczycielka", "Ogród we wsi", "Krótki list", "Targ", "Biblioteka"),
        ("zmienił się zimą", "został naprawiony przez sąsiadów", "nie miał żadnej ceny", "jest znowu otwarty"),
        ("z wielką starannością", "przed wojną", "blisko wybrzeża", "bez jednego słowa", "w innym mieście"),
        ("ponieważ nikt się tego nie spodziewał", "i wszyscy to pamiętają", "jak dawniej", "dla dzieci"),
    ),
    "ru": (
        ("Старый мост", "Учительница", "Деревенский сад", "Короткое письмо", "Рынок", "Библиотека"),
        ("изменился зимой", "был построен соседями", "не имел никакой цены", "снова открыт для всех"),
        ("с большой заботой", "перед войной", "недалеко от берега", "без единого слова", "в другом городе"),
        ("потому что никто этого не ждал", "и все это помнят", "как в прежние времена", "для детей"),
    ),
}
# fmt: on

#: Hosts of pages, and hosts that URL filters are to block: by the host itself, or by a word in the path.
HOSTS = (
    "www.example.com", "garden.example.com", "letters.example.org", "news.example.org", "museum.example.net",
    "harbour.example.net", "blog.example.org", "docs.example.com",
)  # fmt: skip
BLOCKED_HOST = "spam.example.net"
BLOCKED_WORD = "porn"

MENU = ("Home", "About us", "Archive", "Contact", "Log in", "Search", "Newsletter", "Imprint")
POLICY = "This site uses cookies. By reading on you accept our terms of use and our privacy policy."

#: The date of all records.
DATE = "2024-05-17T08:30:00Z"


def sentence(draw: random.Random, language: str) -> str:
    """A sentence of a language, with its punctuation."""
    if language == "ja":
        return "".join(draw.choice(part) for part in PARTS[language]) + "。"
    words = " ".join(draw.choice(part) for part in PARTS[language])
    if language == "en" and draw.random() < 0.3:  # Two clauses: sentences have several lengths.
        second = " ".join(draw.choice(part) for part in PARTS[language])
        words += draw.choice((", and ", ", but ", ", while ", "; ")) + second[0].lower() + second[1:]
    return words + draw.choice("....!?")


def paragraphs(draw: random.Random, language: str, count: int) -> list[str]:
    """Paragraphs of four to seven sentences."""
    mark = "" if language == "ja" else " "
    return [mark.join(sentence(draw, language) for _ in range(draw.randint(4, 7))) for _ in range(count)]


@dataclass(frozen=True)
class Page:
    """A record of the crawl: what a server answered, and what the crawler noted about it."""

    kind: str
    url: str
    body: bytes
    content_type: str = "text/html; charset=utf-8"
    payload_type: str = "text/html"
    status: str = "200 OK"


def as_html(title: str, body: str, language: str = "en") -> str:
    """A whole page around `body`: head, menu, a script, footer."""
    menu = "".join(f'<li><a href="/{item.lower().replace(" ", "-")}">{item}</a></li>' for item in MENU)
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<script>window.settings = {"theme": "light"};</script>\n<style>nav { float: left }</style>\n</head>\n<body>\n'
        f"<nav><ul>{menu}</ul></nav>\n<main><article>\n<h1>{html.escape(title)}</h1>\n{body}\n</article></main>\n"
        f"<footer><p>{POLICY}</p></footer>\n</body>\n</html>\n"
    )


def as_paragraphs(texts: list[str]) -> str:
    return "\n".join(f"<p>{html.escape(text, quote=False)}</p>" for text in texts)


class Crawl:
    """Draws the pages of a crawl one after another."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.articles: list[Page] = []
        self.number = 0

    def page(self) -> Page:
        """The next page: first one of each kind, so that small crawls have all, then of a kind drawn by its share."""
        kinds = list(KINDS)
        drawn = self.draw.choices(kinds, list(KINDS.values()))[0]
        make = kinds[self.number] if self.number < len(kinds) else drawn
        self.number += 1
        return make(self)

    def url(self, host: str | None = None, folder: str = "pages") -> str:
        return f"https://{host or self.draw.choice(HOSTS)}/{folder}/{self.number:05d}.html"

    def made(self, kind: str, body: str, language: str = "en", url: str | None = None) -> Page:
        title = sentence(self.draw, language)
        return Page(kind, url or self.url(), as_html(title, body, language).encode())

    def article(self) -> Page:
        page = self.made("article", as_paragraphs(paragraphs(self.draw, "en", self.draw.randint(4, 9))))
        self.articles.append(page)
        return page

    def foreign(self) -> Page:
        language = self.draw.choice([language for language in PARTS if language != "en"])
        return self.made("foreign", as_paragraphs(paragraphs(self.draw, language, 6)), language)

    def exact_duplicate(self) -> Page:
        return replace(self.earlier(), kind="exact_duplicate", url=self.url("mirror.example.org"))

    def near_duplicate(self) -> Page:
        """An article that another site took over, with one sentence of its own."""
        before, opened, after = self.earlier().body.partition(b"<p>")
        return Page(
            "near_duplicate", self.url("copies.example.net"), before + opened + self.first_sentence() + b" " + after
        )

    def earlier(self) -> Page:
        return self.draw.choice(self.articles) if self.articles else self.article()

    def first_sentence(self) -> bytes:
        return html.escape(sentence(self.draw, "en"), quote=False).encode()

    def repeated_sentences(self) -> Page:
        """An article with sentences of other articles: sentence deduplication finds them."""
        texts = paragraphs(self.draw, "en", 4)
        shared = random.Random(len(self.articles) % 3)
        return self.made("repeated_sentences", as_paragraphs([*texts, *paragraphs(shared, "en", 1)]))

    def short(self) -> Page:
        return self.made("short", as_paragraphs([sentence(self.draw, "en") for _ in range(2)]))

    def link_list(self) -> Page:
        items = "".join(f"<li>{sentence(self.draw, 'en')[:-1]}...</li>" for _ in range(30))
        return self.made("link_list", f"<ul>{items}</ul>")

    def repetitive(self) -> Page:
        return self.made("repetitive", as_paragraphs([sentence(self.draw, "en")] * 12 + paragraphs(self.draw, "en", 1)))

    def placeholder(self) -> Page:
        texts = paragraphs(self.draw, "en", 3)
        filler = self.draw.choice(
            ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "function f() { return; }")
        )
        return self.made("placeholder", as_paragraphs([*texts, filler]))

    def few_sentences(self) -> Page:
        """Long lines without an end: C4's rules want five sentences, FineWeb's lines that end."""
        texts = [" and ".join(sentence(self.draw, "en")[:-1] for _ in range(6)) for _ in range(3)]
        return self.made("few_sentences", as_paragraphs(texts))

    def poem(self) -> Page:
        lines = "<br>".join(" ".join(sentence(self.draw, "en").split()[:4]) + "," for _ in range(40))
        return self.made("poem", f"<p>{lines}</p>" + as_paragraphs(paragraphs(self.draw, "en", 1)))

    def contacts(self) -> Page:
        """An article with e-mail and IP addresses."""
        draw = self.draw
        lines = [
            f"{text} Write to {draw.choice(('anna', 'office', 'the.editor'))}@{draw.choice(HOSTS)} or log in at"
            f" 198.51.100.{draw.randint(1, 254)} before the end of the month."
            for text in paragraphs(draw, "en", 4)
        ]
        return self.made("contacts", as_paragraphs(lines))

    def mojibake(self) -> Page:
        """UTF-8 that was once decoded as Latin-1, and symbols at the starts of lines."""
        broken = "The café of the naïve façade served crème brûlée.".encode().decode("latin-1")
        texts = paragraphs(self.draw, "en", 4)
        return self.made("mojibake", as_paragraphs([f"{texts[0]} {broken}", *texts[1:], "● The list is over."]))

    def blocked(self) -> Page:
        host, folder = self.draw.choice(((BLOCKED_HOST, "pages"), ("www.example.com", f"free-{BLOCKED_WORD}")))
        body = as_paragraphs(paragraphs(self.draw, "en", 4))
        return self.made("blocked", body, url=self.url(host, folder))

    def boilerplate(self) -> Page:
        return self.made("boilerplate", as_paragraphs([POLICY, "Log in to read on.", POLICY]))

    def truncated(self) -> Page:
        page = self.made("truncated", as_paragraphs(paragraphs(self.draw, "en", 6)))
        return replace(page, body=page.body[: len(page.body) // 2])

    def latin_1(self) -> Page:
        """A German page in Latin-1 whose server promises UTF-8."""
        page = self.made("latin_1", as_paragraphs(paragraphs(self.draw, "de", 6)), "de")
        return replace(page, body=page.body.decode().replace("utf-8", "iso-8859-1").encode("latin-1"))

    def empty(self) -> Page:
        return Page("empty", self.url(), b"")

    def redirect(self) -> Page:
        return Page("redirect", self.url(), b"", status="301 Moved Permanently")

    def image(self) -> Page:
        body = b"\x89PNG\r\n\x1a\n" + self.draw.randbytes(2000)
        return Page("image", self.url().replace(".html", ".png"), body, "image/png", "image/png")

    def mislabelled(self) -> Page:
        """An archive that its server calls a page."""
        return Page(
            "mislabelled",
            self.url(),
            gzip.compress(self.draw.randbytes(2000), mtime=0),
            "text/html",
            "application/gzip",
        )


#: What makes a page of each kind -> its share of all pages, in percent.
KINDS: dict[Callable[[Crawl], Page], float] = {
    Crawl.article: 36, Crawl.foreign: 14, Crawl.near_duplicate: 8, Crawl.exact_duplicate: 5,
    Crawl.repeated_sentences: 4, Crawl.contacts: 4, Crawl.short: 3, Crawl.link_list: 3, Crawl.repetitive: 3,
    Crawl.placeholder: 3, Crawl.few_sentences: 2, Crawl.poem: 2, Crawl.mojibake: 2, Crawl.blocked: 3,
    Crawl.boilerplate: 1, Crawl.truncated: 1, Crawl.latin_1: 1, Crawl.empty: 1, Crawl.redirect: 1, Crawl.image: 2,
    Crawl.mislabelled: 1,
}  # fmt: skip


def pages(count: int, seed: int = 0) -> list[Page]:
    """The first `count` pages of the crawl of a seed."""
    crawl = Crawl(seed)
    return [crawl.page() for _ in range(count)]


def record(kind: str, fields: dict[str, str], block: bytes) -> bytes:
    """One WARC record, compressed by itself, as Common Crawl writes them."""
    head = {"WARC-Type": kind, "WARC-Date": DATE, **fields, "Content-Length": str(len(block))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return gzip.compress(f"WARC/1.0\r\n{lines}\r\n".encode() + block + b"\r\n\r\n", compresslevel=6, mtime=0)


def records(page: Page, seed: int, number: int) -> bytes:
    """The request for a page, and the response."""
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{seed}/{number}/{page.url}")
    host, path = page.url.removeprefix("https://").split("/", 1)
    http = f"HTTP/1.1 {page.status}\r\nContent-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n\r\n"
    request = record(
        "request",
        {
            "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(identity, 'request')}>",
            "WARC-Target-URI": page.url,
            "Content-Type": "application/http; msgtype=request",
        },
        f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
    )
    response = record(
        "response",
        {
            "WARC-Record-ID": f"<urn:uuid:{identity}>",
            "WARC-Target-URI": page.url,
            "WARC-Identified-Payload-Type": page.payload_type,
            "Content-Type": "application/http; msgtype=response",
        },
        http.encode() + page.body,
    )
    return request + response


def write_crawl(folder: Path, count: int = 400, files: int = 8, seed: int = 0) -> list[Page]:
    """Write a crawl of `count` pages to `files` files `00000.warc.gz`, ..., and return its pages in their order.

    Page i lies in file i modulo `files`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = pages(count, seed)
    for file in range(files):
        head = record("warcinfo", {"Content-Type": "application/warc-fields"}, b"software: web_crawl.py\r\n")
        body = b"".join(records(made[i], seed, i) for i in range(file, count, files))
        (folder / f"{file:05d}.warc.gz").write_bytes(head + body)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder that gets the WARC files")
    parser.add_argument("--pages", type=int, default=400, help="number of pages (default: 400)")
    parser.add_argument("--files", type=int, default=8, help="number of WARC files (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="another number makes another crawl (default: 0)")
    options = parser.parse_args()
    made = write_crawl(options.folder, options.pages, options.files, options.seed)
    print(f"{options.folder}: {len(made)} pages in {options.files} WARC files")


if __name__ == "__main__":
    main()
