"""`/docs` without outside assets: Swagger UI is served from here."""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

VENDOR: Final = Path(__file__).parents[1] / "page" / "vendor"
_NO_ICON: Final = "data:,"
_UI: Final = {"validatorUrl": None, "displayRequestDuration": True, "defaultModelsExpandDepth": 0}


def install_docs(app: FastAPI) -> None:
    """Add `/docs` and the two files it needs."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title}: API",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
            swagger_ui_parameters=_UI,
        )

    @app.get("/docs/swagger-ui-bundle.js", include_in_schema=False)
    async def script() -> FileResponse:
        return FileResponse(VENDOR / "swagger-ui-bundle.js", media_type="text/javascript")

    @app.get("/docs/swagger-ui.css", include_in_schema=False)
    async def style() -> FileResponse:
        return FileResponse(VENDOR / "swagger-ui.css", media_type="text/css")
