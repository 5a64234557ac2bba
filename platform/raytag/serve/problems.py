"""Errors as a caller of the API sees them: problem details (RFC 9457).

Knows statuses and their words; not what led to them.
"""

import json
from http import HTTPStatus
from math import ceil

from starlette.responses import Response


class Problem(Exception):  # noqa: N818 - what RFC 9457 calls it
    """An answer that is none: ``detail`` says what was wrong and what to do.

    ``retry_after`` is in seconds, where trying again later helps.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def response(self, request_id: str) -> Response:
        """As ``application/problem+json``."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        headers = {}
        if self.retry_after is not None:
            # Whole seconds are all the header can say, and 0 would mean at once.
            headers["Retry-After"] = str(max(1, ceil(self.retry_after)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(
            json.dumps(content).encode(),
            status_code=self.status,
            headers=headers,
            media_type="application/problem+json",
        )
