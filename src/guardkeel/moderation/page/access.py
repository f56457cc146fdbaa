"""Who looks at the page: the keys and roles of the API, the key in a cookie that scripts cannot read.

The cookie is the key itself, and lives as long as the browser: nothing is kept on the server, so every replica knows
it, and a key that is revoked is out at once. It goes to the page's own paths alone; the API takes bearer tokens only.
A form must come from this page: `Sec-Fetch-Site` says so, or the `Origin` is our own host where a browser does not send
it (over plain HTTP). SameSite=Lax stands behind that. So the referrer policy must not be no-referrer, under which
browsers send `Origin: null`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from fastapi import HTTPException, Request, Response

from guardkeel.moderation.keys import ANYONE, ApiKey, Keys
from guardkeel.moderation.routes_common import ApiError

if TYPE_CHECKING:
    from guardkeel.moderation.service import Service

COOKIE = "guardkeel_key"
PLACE = "/page"


class Door:
    """Lets in whoever has a key that may give feedback, or is admin."""

    def __init__(self, service: Service) -> None:
        config = service.config
        self._service = service
        self._keys = Keys(config.path(config.server.keys)) if config.server.keys else None

    @property
    def keyed(self) -> bool:
        """Whether there are keys; without any whoever asks is admin."""
        return self._keys is not None

    def find(self, given: str) -> ApiKey | None:
        """The key, or None."""
        return ANYONE if self._keys is None else self._keys.find(given.strip())

    def enter(self, request: Request) -> ApiKey:
        """Who asks, counted against the key's rate.

        Raises:
            HTTPException: to the login where nobody is known; 401 where a script asks, 403 where the role is missing.
            OverloadedError: too many requests.
        """
        key: ApiKey | None = request.state.key or self.find(request.cookies.get(COOKIE, ""))
        if key is None:
            if wants_json(request) or request.method != "GET":
                raise ApiError(401, "log in first", kind="authentication_error", code="invalid_api_key")
            raise HTTPException(303, headers={"location": "login"})
        request.state.key = key
        self._service.rates.take(
            key.id, key.requests_per_minute or self._service.config.server.requests_per_minute
        )
        if not may_look(key):
            raise ApiError(
                403, "this key has not the role 'feedback'", kind="permission_error", code="forbidden"
            )
        return key


def may_look(key: ApiKey) -> bool:
    """Whether the page is for this key."""
    return key.may("feedback")


def wants_json(request: Request) -> bool:
    """Whether a script asks, and not a person."""
    return "application/json" in request.headers.get("accept", "")


def own_form(request: Request) -> None:
    """Refuse what another site, or no page at all, has sent; raises ApiError 403."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        own = site == "same-origin"
    else:
        origin = urlsplit(request.headers.get("origin", ""))
        own = bool(origin.netloc) and origin.netloc == request.headers.get("host")
    if not own:
        raise ApiError(
            403, "this form was not sent from the page itself", kind="permission_error", code="cross_site"
        )


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form, the first of each name."""
    try:
        given = parse_qs((await request.body()).decode(), max_num_fields=20, keep_blank_values=True)
    except ValueError:
        raise ApiError(400, "the form cannot be read", code="invalid_request") from None
    return {name: values[0] for name, values in given.items()}


def remember(request: Request, response: Response, secret: str) -> None:
    """Keep the key in the browser. Where the way to us is encrypted, it goes no other way."""
    forwarded = request.headers.get("x-forwarded-proto", request.url.scheme)
    place = request.scope.get("root_path", "") + PLACE
    response.set_cookie(
        COOKIE, secret.strip(), path=place, httponly=True, samesite="lax", secure=forwarded == "https"
    )


def forget(request: Request, response: Response) -> None:
    """Take the key out of the browser."""
    response.delete_cookie(
        COOKIE, path=request.scope.get("root_path", "") + PLACE, httponly=True, samesite="lax"
    )
