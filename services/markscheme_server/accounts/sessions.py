"""Sessions of the pages: who signed in by a key is known by a cookie, which is not the key.

A cookie is `REFERENCE.EXPIRY.SIGNATURE`. The reference names the key as the database does; the
signature is an HMAC-SHA256 under a secret of the deployment, its pepper and its operator's key, so
that a change of any of them ends all sessions. At each request the key's state is looked up, so
that revoking it ends its sessions too.
"""

import hashlib
import hmac
import time
from collections.abc import Callable

from markscheme_server.accounts.auth import Authenticator
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Unauthorised

PAGES = "/pages/"
"""Where the pages are: sessions are for them alone, the API takes keys."""
COOKIE = "markscheme"
SESSION_S = 12 * 3600
"""Seconds after which one must sign in again."""


class Sessions:
    """Sign-in by key, for browsers.

    `secret`: the deployment's. `key_material`: its pepper and its operator's key, if they are set.
    `clock`: seconds since 1970.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        secret: str,
        *key_material: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authenticator, self._clock = authenticator, clock
        digest = hashlib.sha256(secret.encode())
        for text in key_material:
            digest.update(b"\0" + hashlib.sha256((text or "").encode()).digest())
        self._key = digest.digest()

    async def sign_in(self, token: str) -> tuple[str, Caller]:
        """Return a cookie for the holder of a key, and who that is. Raises `Unauthorised`."""
        reference = self._authenticator.reference(token)
        caller = await self._authenticator.resume(reference)
        stated = f"{reference}.{int(self._clock()) + SESSION_S}"
        return f"{stated}.{self._sign('session', stated)}", caller

    async def resume(self, cookie: str | None) -> Caller:
        """Return who signed in; where no key is needed, the operator. Raises `Unauthorised`."""
        if cookie is None or not await self._authenticator.requires_key():
            return await self._authenticator.authenticate(None)
        stated, _, signature = cookie.rpartition(".")
        reference, _, expiry = stated.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", stated).encode()):
            raise Unauthorised("this session is not known; sign in again", code="unknown_session")
        if int(expiry) <= self._clock():
            raise Unauthorised("this session has ended; sign in again", code="expired_session")
        return await self._authenticator.resume(reference)

    def form_token(self, cookie: str | None) -> str:
        """Return the token that the forms of a session carry, against requests of other sites."""
        return self._sign("form", cookie or "")

    def is_form_token(self, cookie: str | None, token: str) -> bool:
        """Return whether a form carried the token of its session."""
        return hmac.compare_digest(self.form_token(cookie).encode(), token.encode())

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
