"""The fast S3 engine: obstore (Rust's object_store) for reads and single PUTs; starts in a tenth of the time.

It takes those options of s3fs that obstore can express. Multipart uploads and listings have requests of their own
(plain_requests.py): obstore can neither resend a part nor complete an upload later, and notices neither a truncated
listing nor one without an end. Other requests that only a launch makes go through the s3fs engine.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stagger.errors import StaggerError, counted
from stagger.storage import Entry
from stagger.storage.faults import BrokenOff, fault_of
from stagger.storage.s3.engine import Body, Changed, Engine, Page, quoted

if TYPE_CHECKING:
    from stagger.storage.s3.plain_requests import PlainRequests
    from stagger.storage.s3.signature import Keys

T = TypeVar("T")

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as missing:
    raise StaggerError(
        f"The S3 engine obstore cannot be imported ({missing}); install it with: pip install obstore"
    ) from missing

#: s3fs's options -> obstore's.
OPTIONS = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint",
    "anon": "skip_signature",
    "requester_pays": "request_payer",
}
CLIENT_OPTIONS = {
    "region_name": "region",
    "endpoint_url": "endpoint",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}

#: Bytes per piece of a body: each costs a turn at Python's lock. When a body breaks off, the piece being gathered is
#: lost, so pieces are shorter from then on.
PIECE_BYTES = 256 * 2**10
SHORT_PIECE_BYTES = 64 * 2**10

#: Limits for connecting, for one read, and for a whole request; a body that takes longer is resumed.
TIMEOUTS = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=60),
    "timeout": timedelta(hours=1),
}

#: What obstore cannot represent in a key: empty segments, `.` and `..`, control characters.
UNFIT = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")


class ObstoreEngine:
    """An `Engine` over one obstore store per bucket. obstore's own retries are off."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._config, self._profile = translate(options)
        self._stores: dict[str, S3Store] = {}
        self._piece_bytes = PIECE_BYTES
        self._refused: set[str] = set()  # Buckets for which s3fs makes the requests that obstore cannot make.

    def _store(self, bucket: str) -> S3Store:
        if bucket not in self._stores:
            endpoint = endpoint_of(self._config, self._found)
            config = {**self._found, **self._config}
            client = {**TIMEOUTS, "allow_http": endpoint.startswith("http://")}
            try:
                self._stores[bucket] = S3Store(
                    bucket,
                    client_options=cast("Any", client),
                    retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
                    **{**config, **({"endpoint": endpoint} if endpoint else {})},
                )
            except (exceptions.BaseError, ValueError) as error:
                raise StaggerError(f"storage_options of s3: {error}") from error
        return self._stores[bucket]

    def beyond(self) -> str:
        """What obstore cannot do of what the environment and the AWS files want; empty if it can do all."""
        plain_http = endpoint_of(self._config, self._found).startswith("http://")
        names: tuple[str, ...] = BEYOND_HTTP if plain_http else BEYOND_HTTPS
        if set_here := [name for name in (*names, *BEYOND_BOTH) if os.environ.get(name)]:
            return set_here[0]
        if is_plain(self._profile, self._config):
            return ""
        import botocore.session

        scoped = botocore.session.Session(profile=self._profile or None).get_scoped_config()
        if found := [name for name in BEYOND_CONFIG if name in scoped]:
            return f"{found[0]} in the AWS files"
        if not has_keys(self._config) and "credential_provider" not in self._found:
            return "no credentials"  # s3fs reports it at once.
        return ""

    @functools.cached_property
    def _found(self) -> dict[str, Any]:
        return from_botocore(self._profile, self._config)

    @property
    def name(self) -> str:
        return "obstore and s3fs" if "s3fs" in self.__dict__ else "obstore"

    @property
    def keyed(self) -> set[str]:
        made = [self.__dict__[name] for name in ("s3fs", "_plain") if self.__dict__.get(name) is not None]
        return set().union(*(engine.keyed for engine in made))

    @functools.cached_property
    def s3fs(self) -> Engine:
        """The engine for what obstore cannot do."""
        from stagger.storage.s3.s3fs_engine import S3fsEngine

        return S3fsEngine(self._options)

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        options: dict[str, Any] = {}
        if start or end is not None:
            options["range"] = {"offset": start} if end is None else (start, end)
        if version:
            options["if_match"] = version
        try:
            answer = obstore.get(self._store(bucket), key, options=cast("Any", options))
        except exceptions.PreconditionError as error:
            raise Changed from error
        except exceptions.BaseError as error:
            if "range" in options and "status code: 416" in str(error):
                return Body(version, iter(()))
            raise
        first, last = answer.range
        return Body(etag_in(answer.meta), self._chunks(answer, last - first), answer.meta["size"])

    def _chunks(self, answer: obstore.GetResult, length: int) -> Iterator[bytes]:
        try:
            for chunk in answer.stream(min_chunk_size=self._piece_bytes):
                length -= len(chunk)
                yield bytes(chunk)
            if length > 0:
                raise BrokenOff(f"{counted(length, 'byte', 'is')} missing")
        except Exception:
            self._piece_bytes = SHORT_PIECE_BYTES
            raise

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str:
        mode: Any = "create" if create else {"e_tag": match} if match else "overwrite"
        try:
            answer = obstore.put(self._store(bucket), key, data, mode=mode, use_multipart=False)
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(key) from error
        except exceptions.PreconditionError as error:
            raise Changed from error
        return etag_in(answer)

    def delete(self, bucket: str, key: str, *, match: str = "") -> None:
        if match:
            self.s3fs.delete(bucket, key, match=match)
        else:
            obstore.delete(self._store(bucket), key)

    def head(self, bucket: str, key: str) -> Entry | None:
        try:
            found = obstore.head(self._store(bucket), key)
        except FileNotFoundError:
            return None
        return Entry(key, found["size"], etag_in(found))

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str = "") -> Page:
        page = self.any_page(bucket, prefix, recursive=recursive, more=more, after=after)
        if (name := unfit(page.names)) is not None:
            raise StaggerError(
                f"s3://{bucket}/{prefix} holds a key that the engine obstore cannot represent ({name!r}); use the"
                " engine s3fs, or another folder."
            )
        return page

    def any_page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str) -> Page:
        """A page, also with keys that obstore cannot represent."""
        return self._own(
            bucket, lambda engine: engine.page(bucket, prefix, recursive=recursive, more=more, after=after)
        )

    def has_bucket(self, bucket: str) -> bool:
        return self.s3fs.has_bucket(bucket)

    def begin_upload(self, bucket: str, key: str) -> str:
        return self._own(bucket, lambda engine: engine.begin_upload(bucket, key))

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        return self._own(bucket, lambda engine: engine.put_part(bucket, key, upload, number, data))

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> str:
        return self._own(bucket, lambda engine: engine.complete_upload(bucket, key, upload, parts))

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        self._own(bucket, lambda engine: engine.abort_upload(bucket, key, upload))

    def _own(self, bucket: str, call: Callable[[PlainRequests | Engine], T]) -> T:
        """Make a request without obstore: by s3fs, if the plain one fails for good and that of s3fs does not."""
        own = None if bucket in self._refused else self._plain
        if own is None:
            return call(self.s3fs)
        try:
            return call(own)
        except FileNotFoundError:
            raise
        except Exception as error:
            if fault_of(error):
                raise
            answer = call(self.s3fs)
            self._refused.add(bucket)
            return answer

    @functools.cached_property
    def _plain(self) -> PlainRequests | None:
        """Plain requests; None where they would not find the store as obstore does."""
        if self.beyond() or self._config.get("skip_signature") or not BEYOND_PLAIN.isdisjoint(os.environ):
            return None
        from stagger.storage.s3.plain_requests import Place, PlainRequests

        region = self._config.get("region") or self._found.get("region") or region_here()
        endpoint = endpoint_of(self._config, self._found) or f"https://s3.{region}.amazonaws.com"
        headers = {"x-amz-request-payer": "requester"} if self._config.get("request_payer") else {}
        return PlainRequests(Place(endpoint, str(region), self._keys, headers))

    def _keys(self) -> Keys:
        from stagger.storage.s3.signature import Keys

        if provider := self._found.get("credential_provider"):
            found = provider()
            return Keys(found["access_key_id"], found["secret_access_key"], found["token"] or "")
        config = self._config
        if config.get("access_key_id"):
            return Keys(config["access_key_id"], config["secret_access_key"], config.get("session_token") or "")
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return Keys(*(os.environ.get(name, "") for name in names))

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        return self.s3fs.uploads(bucket, prefix)


def unfit(names: list[str]) -> str | None:
    r"""The first of these keys that obstore cannot represent. A folder marker may end with `/`.

    >>> unfit(["a/b", "a/"]), unfit(["a/../b"]), unfit(["a/b", "c\n"])
    (None, 'a/../b', 'c\n')
    """
    keys = "/".join(["", *names, ""])  # One look at all of them is enough for nearly all pages.
    if keys.isprintable() and not any(odd in keys for odd in ("//", "/./", "/../")):
        return None
    return next((name for name in names if UNFIT.search(name.removesuffix("/"))), None)


def etag_in(answer: Any) -> str:
    """The ETag of an answer; empty if it has none."""
    return quoted(str(answer["e_tag"] or ""))


def translate(options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """obstore's configuration, and the AWS profile, from s3fs's options. Raises StaggerError for any other option."""
    config: dict[str, Any] = {}
    profile = ""
    for name, value in options.items():
        if name in OPTIONS:
            config[OPTIONS[name]] = value
        elif name == "profile":
            profile = str(value)
        elif name == "client_kwargs" and isinstance(value, dict) and value.keys() <= CLIENT_OPTIONS.keys():
            config |= {CLIENT_OPTIONS[key]: item for key, item in value.items()}
        else:
            known = [*OPTIONS, "profile", f"client_kwargs ({', '.join(CLIENT_OPTIONS)})"]
            raise StaggerError(
                f"storage_options of s3: the engine obstore does not take {name!r}; it takes {', '.join(known)}."
                " Use the engine s3fs for anything else."
            )
    return config, profile


#: Environment variables for what obstore cannot do as botocore does it: with endpoints of HTTP, of HTTPS, and of both.
BEYOND_HTTP = ("HTTP_PROXY", "http_proxy")
BEYOND_HTTPS = ("HTTPS_PROXY", "https_proxy", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
BEYOND_BOTH = (
    "ALL_PROXY",
    "all_proxy",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_SECURITY_TOKEN",  # AWS_SESSION_TOKEN's old name.
)

#: The same in the file ~/.aws/config.
BEYOND_CONFIG = (
    "s3",
    "services",
    "ca_bundle",
    "use_fips_endpoint",
    "use_dualstack_endpoint",
    "ignore_configured_endpoint_urls",
)


#: Environment variables that obstore heeds, and the own requests of multipart uploads do not.
BEYOND_PLAIN = {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_S3_EXPRESS", "AWS_SKIP_SIGNATURE", "AWS_REQUEST_PAYER"}


def region_here() -> str:
    """The region that the environment names."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def endpoint_of(config: dict[str, Any], found: dict[str, Any]) -> str:
    """The endpoint from the options, the environment, or what botocore found; empty for AWS's."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return str(config.get("endpoint") or named or found.get("endpoint") or "")


def has_keys(config: dict[str, Any]) -> bool:
    """Whether the options, or the environment, have a key and its secret, or want no signature."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    given = all(config.get(OPTIONS[name]) for name in ("key", "secret"))
    return bool(given or config.get("skip_signature") or all(map(os.environ.get, names)))


def is_plain(profile: str, config: dict[str, Any]) -> bool:
    """Whether options and environment have all credentials, and there are no AWS files: botocore need not be asked."""
    names = ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")
    files = [os.path.expanduser(os.environ.get(variable, name)) for variable, name in names]
    return not profile and has_keys(config) and not any(map(os.path.exists, files))


def from_botocore(profile: str, config: dict[str, Any]) -> dict[str, Any]:
    """Region, endpoint and credentials as botocore finds them: obstore itself does not read the AWS files.

    botocore also knows SSO, assumed roles, credential processes, web identities, containers and instances.
    """
    if is_plain(profile, config):
        return {}
    import botocore.session

    session = botocore.session.Session(profile=profile or None)
    found: dict[str, Any] = {}
    if region := session.get_config_variable("region"):
        found["region"] = region
    if endpoint := session.get_scoped_config().get("endpoint_url"):
        found["endpoint"] = endpoint
    if (profile or not has_keys(config)) and (credentials := session.get_credentials()) is not None:

        def frozen() -> dict[str, Any]:
            now = credentials.get_frozen_credentials()
            named = {"access_key_id": now.access_key, "secret_access_key": now.secret_key}
            return {**named, "token": now.token, "expires_at": getattr(credentials, "_expiry_time", None)}

        found["credential_provider"] = frozen
    return found
