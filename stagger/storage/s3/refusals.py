"""What a store's refusal means, in one sentence: its error code, or botocore's error, and what to do. Pure."""

from __future__ import annotations

import re
from typing import Any

#: Where credentials come from.
SOURCES = "the AWS variables, a profile of the AWS files, or storage_options"

#: What to do about an endpoint that nobody answers at.
UNREACHABLE = "the endpoint cannot be reached: correct endpoint_url in storage_options, or the network"

#: Error code of S3, or name of botocore's exception -> what is wrong, and what to do.
MEANINGS = {
    "NoSuchBucket": "there is no such bucket at this endpoint: create it, or correct the path or endpoint_url",
    "InvalidAccessKeyId": f"the store does not know the access key: correct it ({SOURCES}), or endpoint_url",
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key: correct it ({SOURCES})",
    "ExpiredToken": "the credentials have expired: log in again, or export new ones",
    "ExpiredTokenException": "the credentials have expired: log in again, or export new ones",
    "TokenRefreshRequired": "the credentials have expired: log in again, or export new ones",
    "InvalidToken": f"the session token is not valid for these keys: correct it ({SOURCES})",
    "AccessDenied": f"the credentials may not do this: use others ({SOURCES}), or ask the bucket's owner",
    "AllAccessDisabled": "the owner has closed the bucket",
    "AccountProblem": "there is a problem with the account of these credentials: ask who runs the store",
    "RequestTimeTooSkewed": "the clock of this machine is wrong, and the store rejects its requests: set it",
    "PermanentRedirect": "the bucket is in another region: set client_kwargs: {region_name: ...} in storage_options",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set client_kwargs: {region_name: ...} in"
    " storage_options",
    "NoCredentialsError": f"no credentials were found: give them in {SOURCES}",
    "PartialCredentialsError": f"the credentials are incomplete: give key and secret in {SOURCES}",
    "TokenRetrievalError": "the login has expired: log in again (aws sso login)",
    "SSOTokenLoadError": "the login has expired: log in again (aws sso login)",
    "UnauthorizedSSOTokenError": "the login has expired: log in again (aws sso login)",
    "ProfileNotFound": "there is no such profile in the AWS files",
    "403": f"the store rejects the credentials: correct them ({SOURCES})",
    "401": f"the store rejects the credentials: correct them ({SOURCES})",
}

#: The text of an error of obstore without credentials: it looks for those of a virtual machine.
NO_CREDENTIALS = re.compile(r"169\.254\.|metadata|credential", re.IGNORECASE)


def meaning(error: BaseException) -> str:
    """What an error of a store means, and what to do; empty for one that is not in MEANINGS."""
    seen: BaseException | None = error
    for _ in range(8):  # Libraries wrap each other's errors.
        if seen is None:
            return ""
        names = [*_codes(getattr(seen, "response", None)), *(kind.__name__ for kind in type(seen).__mro__)]
        if type(seen).__module__.startswith("obstore"):
            names += _codes_in_text(str(seen))
        if name := next((name for name in names if name in MEANINGS), ""):
            return MEANINGS[name]
        seen = seen.__cause__ or seen.__context__
    return ""


def _codes(response: Any) -> list[str]:
    if not isinstance(response, dict):
        return []
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return [str(response.get("Error", {}).get("Code", "")), str(status)]


def _codes_in_text(text: str) -> list[str]:
    found = re.findall(r"<Code>(\w+)</Code>", text) + re.findall(r"(?:status code:? |HTTP status .*\()(\d{3})", text)
    return found or (["NoCredentialsError"] if NO_CREDENTIALS.search(text) else [])
