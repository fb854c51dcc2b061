"""What a request is refused with: OpenAI's error bodies, which name the field."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from data.errors import UserError


class Refused(Exception):
    """A request that is answered with an error: the HTTP `status`, a message, the field it is about, a code."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after


def body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(error: Refused) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(error.status, error.message, error.param, error.code), error.status, headers)


def of_user_error(error: UserError) -> Refused:
    """What a value is refused with that the engine refuses."""
    return Refused(400, getattr(error, "neutral", str(error)), getattr(error, "field", None))


def install(app: FastAPI) -> None:
    """Make `app` answer every error so."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(error)

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> JSONResponse:
        return answer(of_user_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        if first["type"] == "extra_forbidden":
            return answer(Refused(400, f"{param} means nothing here; leave it out", param, "unsupported_parameter"))
        where = "the request" if param is None else param
        return answer(Refused(400, f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}", param))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        message = (
            f"there is no {request.method} {request.url.path}" if error.status_code in (404, 405) else error.detail
        )
        return answer(Refused(error.status_code, message))
