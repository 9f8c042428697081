"""The page at `/schema`: the OpenAPI document as one HTML page that needs nothing from elsewhere.

No scripts, no fonts, no images; the Content-Security-Policy allows its one inline style sheet (by
its hash) and nothing else, so a browser that shows it talks to nobody. What the page says is read
from the same bytes that `/schema/openapi.json` answers. It is rendered at the first request;
a request then only puts in the address it came to.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final

import msgspec
from litestar import Request, Response, Router
from litestar.datastructures import ResponseHeader, State
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Tag
from markupsafe import Markup, escape

from tollkeeper.web import wording
from tollkeeper.web.openapi import SECURITY, document_components
from tollkeeper.web.outline import Document
from tollkeeper.web.problem import ProblemTable

PATH: Final = "/schema"

_ADDRESS = "ADDRESS-OF-THIS-SERVER"
"""Stands in the rendered page where each request's own address goes."""

_HOST = re.compile(rb"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
"""Narrower than RFC 3986, which lets a host hold `$(command)`: people paste it into a shell."""


def reference(
    *,
    title: str,
    version: str,
    description: str,
    tags: Mapping[str, str],
    handlers: Sequence[HTTPRouteHandler],
    problems: ProblemTable,
) -> OpenAPIConfig:
    """Return how a service documents itself: the page, and the document at `openapi.json`."""
    page = ReferencePage(problems)
    headers = {
        "Content-Security-Policy": page.policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return OpenAPIConfig(
        title=title,
        version=version,
        description=description,
        tags=[Tag(name=name, description=text) for name, text in tags.items()],
        components=document_components(handlers),
        security=[{SECURITY: []}],
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _method, _path: handler.handler_name,
        render_plugins=[page],
        openapi_router=Router(
            PATH,
            route_handlers=[],
            include_in_schema=False,
            response_headers=[ResponseHeader(name=n, value=v) for n, v in headers.items()],
            after_request=_refuse_other_paths,
        ),
    )


async def _refuse_other_paths(response: Response[bytes]) -> Response[bytes]:
    """Let a path below `PATH` that leads nowhere be a problem as elsewhere, and no page."""
    if response.status_code == 404:
        raise NotFoundException
    return response


class ReferencePage(OpenAPIRenderPlugin):
    """Renders the document as a page that `policy`, a Content-Security-Policy, lets through."""

    def __init__(self, problems: ProblemTable) -> None:
        super().__init__(path="/")
        self._problems = problems
        self._style = files(__package__).joinpath("templates/reference.css").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        self.policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._rendered: str | None = None

    def render(
        self,
        request: Request[None, None, State],
        openapi_schema: dict[str, object],
    ) -> bytes:
        """Return the page with the address of the request in its examples."""
        if self._rendered is None:
            self._rendered = self._render(self.render_json(request, openapi_schema))
        return self._rendered.replace(_ADDRESS, address_of(request)).encode()

    def _render(self, document: bytes) -> str:
        import jinja2  # only the process that is asked for the page needs it

        environment = jinja2.Environment(
            autoescape=True,
            loader=jinja2.PackageLoader("tollkeeper.web"),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {
            "curl": wording.curl_of,
            "members": wording.members_of,
            "notes": wording.notes_of,
            "parameters": wording.parameters_of,
            "prose": wording.prose,
        }
        page: str = environment.get_template("reference.html").render(
            document=msgspec.json.decode(document, type=Document),
            problems=wording.problem_rows(self._problems),
            style=Markup(self._style),  # noqa: S704  # our own file, and its hash is the policy
            address=_ADDRESS,
            json_path=f"{PATH}/openapi.json",
            security=SECURITY,
        )
        return page


def address_of(request: Request[None, None, State]) -> str:
    """Return the address that the request came to, safe to stand in HTML and in a shell."""
    headers = dict(request.scope["headers"])
    host = headers.get(b"host", b"")
    if _HOST.fullmatch(host) is None:
        address, port = request.scope["server"] or ("127.0.0.1", 80)
        host = f"{address}:{port}".encode()
    scheme = "https" if headers.get(b"x-forwarded-proto") == b"https" else "http"
    return str(escape(f"{scheme}://{host.decode()}"))
