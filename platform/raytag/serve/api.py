"""The HTTP API: routes, what they take and what they answer, and the page.

Knows requests and answers; the work behind them is the front's (``front.py``), keys and sizes are
looked at before (``gate.py``).
"""

import hashlib
import json
import re
from base64 import b64encode
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from raytag import __version__
from raytag.errors import SettingsError
from raytag.registry.names import LAST_NUMBER, check_name, check_word
from raytag.serve.canary import MOST_LATENCY_RATIO, MOST_REQUESTS, Rule
from raytag.serve.front import Answered, Front
from raytag.serve.gate import DOCS_FILES, Visit
from raytag.serve.metrics import CONTENT_TYPE
from raytag.serve.problems import Problem

_DESCRIPTION = """Texts in, entities out, by adapters of many tenants on one base model. Offsets
count characters (Unicode code points) of the text as it was sent, the end excluded. Every answer
has an `X-Request-Id`; every error is a problem detail (RFC 9457)."""


SHOWN = 100
"""Characters of the place of a mistake that are told: a key may be as long as a body."""


class _Given(BaseModel):
    """What is sent. It is refused at its first faults: a body can hold millions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > len(cls.model_fields):
            raise ValueError(f"it takes no other keys than {', '.join(cls.model_fields)}")
        return given


class Document(_Given):
    """A text with an id, which comes back with its entities."""

    id: str = Field(max_length=1000)
    text: str


class Ask(_Given):
    """Either texts, or documents with ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"texts": ["Apple's CEO Tim Cook gave a presentation in Seoul."]},
                {"documents": [{"id": "a", "text": "Tim Cook was in Seoul."}]},
            ]
        },
    )
    texts: list[str] | None = Field(default=None, fail_fast=True)
    documents: list[Document] | None = Field(default=None, fail_fast=True)

    @model_validator(mode="after")
    def _either(self) -> "Ask":
        if (self.texts is None) == (self.documents is None):
            raise ValueError("give either texts or documents")
        return self


class Entity(BaseModel):
    start: int
    end: int
    label: str
    text: str
    score: float


class Tagged(BaseModel):
    id: str | None = None
    entities: list[Entity]


class Model(BaseModel):
    tenant: str
    domain: str
    version: int
    alias: str | None


class Answer(BaseModel):
    """The documents in the order they came, and the version that read them."""

    model: Model
    documents: list[Tagged]


class Promotion(_Given):
    """The version an alias is to point to; the answer comes when all of the service uses it."""

    version: int = Field(ge=1, le=LAST_NUMBER, examples=[4])
    wait_seconds: float = Field(default=30.0, gt=0, le=300, strict=False)


class CanaryAsk(_Given):
    """A candidate beside the version in use, and what it must hold to take its place."""

    version: int = Field(ge=1, le=LAST_NUMBER, examples=[4])
    share: float = Field(gt=0, le=1, strict=False, examples=[0.1])
    shadow: bool = False
    min_requests: int = Field(default=200, ge=1, le=MOST_REQUESTS)
    max_error_rate: float = Field(default=0.01, ge=0, le=1, strict=False)
    max_latency_ratio: float = Field(default=1.5, gt=0, le=MOST_LATENCY_RATIO, strict=False)
    min_agreement: float = Field(default=0.8, ge=0, le=1, strict=False)

    def rule(self) -> Rule:
        """Raises Problem."""
        try:
            return Rule(
                min_requests=self.min_requests,
                max_error_rate=self.max_error_rate,
                max_latency_ratio=self.max_latency_ratio,
                min_agreement=self.min_agreement,
            )
        except SettingsError as exc:
            raise Problem(422, str(exc)) from exc


Tenant = Annotated[str, Path(description="the tenant, as in the key", examples=["acme"])]
Domain = Annotated[str, Path(description="one of the tenant's domains", examples=["news"])]
Alias = Annotated[str, Path(description="an alias of the domain", examples=["production"])]
Version = Annotated[int | None, Query(ge=1, le=LAST_NUMBER, description="a version by its number")]
OtherAlias = Annotated[str | None, Query(description="another alias than production")]
Timeout = Annotated[
    float | None,
    Header(alias="Raytag-Timeout", gt=0, le=3600, description="seconds the answer is waited for"),
]
_PROBLEM = {"content": {"application/problem+json": {"schema": {"type": "object"}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": said, **_PROBLEM}
    for status, said in {
        401: "no key, or none that is known",
        403: "a key of another tenant or role",
        404: "no such domain, alias or version",
        413: "too much text at a time",
        422: "a request that is not what it should be",
        429: "over the tenant's limits; see Retry-After",
        503: "more than can be carried now; see Retry-After",
        504: "not done within the time given",
    }.items()
}


def build_api(front: Front) -> FastAPI:
    """The API of one serving application."""
    app: FastAPI = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url=DOCS_FILES,
        title="Raytag",
        version=__version__,
        description=_DESCRIPTION,
        swagger_ui_oauth2_redirect_url="/docs/redirect",
    )
    page, policy = _page()

    async def visit(request: Request) -> Visit:
        found: Visit = request.state.visit
        return found

    Visiting = Annotated[Visit, Depends(visit)]  # noqa: N806 - a type

    def counted(given: Any) -> Any:
        """Before any of them is looked at."""
        most = front.settings.max_texts
        for name in ("texts", "documents"):
            texts = given.get(name) if isinstance(given, dict) else None
            if isinstance(texts, list) and len(texts) > most:
                raise Problem(413, f"{len(texts):,} texts; send at most {most:,} at a time")
        return given

    Counted = Annotated[Ask, BeforeValidator(counted)]  # noqa: N806 - a type

    async def releasing(visiting: Visiting) -> None:
        if visiting.identity is None or visiting.identity.role != "release":
            raise Problem(403, "moving an alias takes a key of role release")

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(
            page,
            headers={
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            },
        )

    @app.get("/-/healthz", include_in_schema=False)  # where KubeRay asks
    @app.get("/healthz", summary="This process answers")
    async def healthy() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Requests can be answered", responses={503: _REFUSALS[503]})
    async def ready() -> dict[str, str]:
        await front.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures for Prometheus; takes a key of role operator")
    async def metrics() -> Response:
        return Response(await front.exposition(), media_type=CONTENT_TYPE)

    @app.post(
        "/v1/{tenant}/{domain}/entities",
        summary="Entities of texts",
        response_model=Answer,
        responses=_REFUSALS,
    )
    async def entities(
        tenant: Tenant,
        domain: Domain,
        ask: Counted,
        visiting: Visiting,
        version: Version = None,
        alias: OtherAlias = None,
        timeout: Timeout = None,
    ) -> Response:
        _check_names(tenant, domain, alias)
        if version is not None and alias is not None:
            raise Problem(422, "give a version or an alias, not both")
        documents = ask.documents
        texts = ask.texts if documents is None else [document.text for document in documents]
        assert texts is not None
        answered = await front.extract(
            visiting, tenant, domain, version or alias or "production", texts, timeout
        )
        ids = None if documents is None else [document.id for document in documents]
        return _answer(tenant, domain, texts, ids, answered)

    @app.get("/v1/{tenant}/models", summary="A tenant's domains", responses=_REFUSALS)
    async def models(tenant: Tenant, visiting: Visiting) -> dict[str, Any]:
        _check_names(tenant)
        return await front.models(visiting, tenant)

    path = "/v1/{tenant}/{domain}/aliases/{alias}"

    @app.get(path, summary="What an alias points to, and how far a move is", responses=_REFUSALS)
    async def status(tenant: Tenant, domain: Domain, alias: Alias) -> dict[str, Any]:
        _check_names(tenant, domain, alias)
        return await front.status(tenant, domain, alias)

    @app.post(
        path,
        summary="Promote a version",
        responses=_REFUSALS,
        dependencies=[Depends(releasing)],
    )
    async def promote(
        tenant: Tenant, domain: Domain, alias: Alias, promotion: Promotion
    ) -> dict[str, Any]:
        _check_names(tenant, domain, alias)
        return await front.promote(tenant, domain, alias, promotion.version, promotion.wait_seconds)

    @app.post(
        f"{path}/rollback",
        summary="Go back to what the last promotion replaced",
        responses=_REFUSALS,
        dependencies=[Depends(releasing)],
    )
    async def rollback(tenant: Tenant, domain: Domain, alias: Alias) -> dict[str, Any]:
        _check_names(tenant, domain, alias)
        return await front.rollback(tenant, domain, alias)

    @app.post(
        f"{path}/canary",
        summary="Try a candidate beside it",
        responses=_REFUSALS,
        dependencies=[Depends(releasing)],
    )
    async def start_canary(
        tenant: Tenant, domain: Domain, alias: Alias, asked: CanaryAsk
    ) -> dict[str, Any]:
        _check_names(tenant, domain, alias)
        return await front.start_canary(
            tenant, domain, alias, asked.version, asked.share, asked.shadow, asked.rule()
        )

    @app.delete(
        f"{path}/canary",
        summary="End the trial of a candidate",
        responses=_REFUSALS,
        dependencies=[Depends(releasing)],
    )
    async def stop_canary(tenant: Tenant, domain: Domain, alias: Alias) -> dict[str, Any]:
        _check_names(tenant, domain, alias)
        return await front.stop_canary(tenant, domain, alias)

    @app.exception_handler(Problem)
    async def as_problem(request: Request, problem: Problem) -> Response:
        return problem.response(request.state.visit.id)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, exc: RequestValidationError) -> Response:
        first = exc.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])[:SHOWN] or "the body"
        # What was sent is not repeated: it may be long, or no text at all.
        return Problem(422, f"{place}: {first['msg']}").response(request.state.visit.id)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, exc: HTTPException) -> Response:
        if isinstance(exc.__cause__, Problem):  # of the gate, met while the body was read
            return exc.__cause__.response(request.state.visit.id)
        said = {404: "there is no such path; see /docs", 405: "this path takes other methods"}
        problem = Problem(exc.status_code, said.get(exc.status_code, str(exc.detail)))
        response = problem.response(request.state.visit.id)
        response.headers.update(exc.headers or {})
        return response

    return app


def _answer(
    tenant: str, domain: str, texts: list[str], ids: list[str] | None, answered: Answered
) -> Response:
    documents: list[dict[str, Any]] = []
    for i, (text, entities) in enumerate(zip(texts, answered.entities, strict=True)):
        found = [
            {"start": start, "end": end, "label": label, "text": text[start:end], "score": score}
            for start, end, label, score in entities
        ]
        documents.append({"entities": found} if ids is None else {"id": ids[i], "entities": found})
    model = {
        "tenant": tenant,
        "domain": domain,
        "version": answered.version,
        "alias": answered.alias,
    }
    # Made by ourselves from what was checked: a model's validation would take longer than this.
    content = json.dumps({"model": model, "documents": documents}, ensure_ascii=False)
    return Response(content.encode(), media_type="application/json")


def _check_names(tenant: str, domain: str | None = None, alias: str | None = None) -> None:
    try:
        check_name("tenant", tenant)
        if domain is not None:
            check_name("domain", domain)
        if alias is not None:
            check_word("alias", alias)
    except SettingsError as exc:
        raise Problem(404, str(exc)) from exc


def _page() -> tuple[str, str]:
    """The playground, and the policy under which nothing but what is in it can run."""
    page = resources.files("raytag.serve").joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(part.encode()).digest() for part in parts)
        return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return page, policy
