"""The typed client of Easel's HTTP API, for programs and for our own command line.

A call is a value that says what to send and how to read the answer; a client sends it, waiting or awaiting:

    with Client("http://127.0.0.1:7860") as client:
        job = client.send(submit(Request(prompt="a red boat", steps=20)))
        job = client.wait(job.id)
        file = client.send(picture(job.id, 0))

    async with AsyncClient("http://127.0.0.1:7860") as client:
        reply = await client.send(txt2img(prompt="a red boat", steps=20))

Errors arrive as the same classes that the engine raises in its own process.
"""
from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import httpx

from modules.core import errors
from modules.core.errors import BusyError, NotFoundError, RequestError, WebUIError
from modules.pipeline.request import Request

Answer = TypeVar("Answer")
POLL = 0.15                                                 # seconds between two looks at a job
ENDS = frozenset({"done", "failed", "cancelled", "interrupted", "parked"})
READING = 60.0                                              # seconds; calls that wait for a picture have no limit


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Answer]):
    """One request to the API. patient: the answer may take as long as a picture."""

    method: str
    path: str
    body: Any = None
    content: bytes = b""                                    # in place of a body: a file as it is
    query: Mapping[str, Any] = field(default_factory=dict)
    patient: bool = False
    read: Callable[[httpx.Response], Answer]


@dataclass(frozen=True, kw_only=True)
class RemotePicture:
    """One finished picture of a job. Its file: `picture(job_id, index)`."""

    index: int
    seed: int
    subseed: int
    width: int
    height: int
    complete: bool
    sha256: str                                             # of the file's bytes
    infotext: str


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job as the server tells it. fraction: 0..1; eta: seconds or None; position: jobs before it, -1 when it does not wait."""

    id: str
    task_id: str | None
    state: str
    position: int
    request: Request
    fraction: float
    stage: str
    step: int
    steps: int
    eta: float | None
    error: WebUIError | None
    warnings: tuple[str, ...]
    pictures: tuple[RemotePicture, ...]

    @property
    def ended(self) -> bool:
        return self.state in ENDS


@dataclass(frozen=True, kw_only=True)
class KeptInput:
    """A picture in the server's store. notices: sentences about what was left out of its file."""

    sha256: str
    width: int
    height: int
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Txt2ImgReply:
    """images: the files as they were saved; parameters and info as A1111's API has them."""

    images: tuple[bytes, ...]
    parameters: Mapping[str, Any]
    info: Mapping[str, Any]


# ---- jobs by id

def submit(request: Request, *, save: bool = True, task_id: str | None = None,
           overrides: Mapping[str, Any] | None = None) -> Call[RemoteJob]:
    """Put a request into the queue. overrides: settings for this job only."""
    body = {"request": request.to_json(), "save": save, "task_id": task_id, "overrides": dict(overrides or {})}
    return Call(method="POST", path="/easel/v1/jobs", body=body, read=_job)


def keep(file: bytes, what: str = "picture") -> Call[KeptInput]:
    """Give the server a picture file; its name there goes into an InitImage. what: how an error calls it."""
    return Call(method="POST", path="/easel/v1/inputs", content=file, query={"what": what},
                read=lambda answer: KeptInput(**{**_json(answer), "notices": tuple(_json(answer)["notices"])}))


def job(job_id: str) -> Call[RemoteJob]:
    return Call(method="GET", path=f"/easel/v1/jobs/{job_id}", read=_job)


def cancel(job_id: str) -> Call[RemoteJob]:
    return Call(method="POST", path=f"/easel/v1/jobs/{job_id}/cancel", read=_job)


def skip(job_id: str) -> Call[RemoteJob]:
    return Call(method="POST", path=f"/easel/v1/jobs/{job_id}/skip", read=_job)


def resume(job_id: str, *, force: bool = False) -> Call[RemoteJob]:
    """Take an ended, unfinished job up at its first missing picture."""
    return Call(method="POST", path=f"/easel/v1/jobs/{job_id}/resume", query={"force": force}, read=_job)


def picture(job_id: str, index: int) -> Call[bytes]:
    """The file of one picture, byte for byte as it was saved."""
    return Call(method="GET", path=f"/easel/v1/jobs/{job_id}/pictures/{index}", read=lambda answer: answer.content)


def ready() -> Call[dict[str, str]]:
    """What is loaded: {"torch": "ready", "model": "loading", ...}."""
    return Call(method="GET", path="/easel/v1/ready", read=_json)


# ---- A1111's API; the server has it when started with --api

def txt2img(**fields: Any) -> Call[Txt2ImgReply]:
    """fields: as POST /sdapi/v1/txt2img takes them; what is not named has that API's defaults."""
    return Call(method="POST", path="/sdapi/v1/txt2img", body=fields, patient=True, read=_txt2img)


def img2img(**fields: Any) -> Call[Txt2ImgReply]:
    """fields: as POST /sdapi/v1/img2img takes them, pictures in base64."""
    return Call(method="POST", path="/sdapi/v1/img2img", body=fields, patient=True, read=_txt2img)


def progress(*, skip_current_image: bool = True) -> Call[dict[str, Any]]:
    return Call(method="GET", path="/sdapi/v1/progress", query={"skip_current_image": skip_current_image}, read=_json)


def interrupt() -> Call[None]:
    """Stop whatever runs now."""
    return Call(method="POST", path="/sdapi/v1/interrupt", read=_nothing)


def png_info(file: bytes) -> Call[dict[str, Any]]:
    """{"info": text, "items": {...}, "parameters": {...}} of a picture file."""
    return Call(method="POST", path="/sdapi/v1/png-info", body={"image": base64.b64encode(file).decode("ascii")}, read=_json)


def options() -> Call[dict[str, Any]]:
    return Call(method="GET", path="/sdapi/v1/options", read=_json)


def set_options(changes: Mapping[str, Any]) -> Call[None]:
    return Call(method="POST", path="/sdapi/v1/options", body=dict(changes), read=_nothing)


def samplers() -> Call[list[dict[str, Any]]]:
    return Call(method="GET", path="/sdapi/v1/samplers", read=_json)


def schedulers() -> Call[list[dict[str, Any]]]:
    return Call(method="GET", path="/sdapi/v1/schedulers", read=_json)


def models() -> Call[list[dict[str, Any]]]:
    """[{"title", "model_name", "hash", "sha256", "filename", "config"}]"""
    return Call(method="GET", path="/sdapi/v1/sd-models", read=_json)


def vaes() -> Call[list[dict[str, Any]]]:
    return Call(method="GET", path="/sdapi/v1/sd-vae", read=_json)


# ---- clients

class Client:
    """Sends calls and waits. address: "http://127.0.0.1:7860"; auth: (name, password). Raises WebUIError of the kind the server told."""

    def __init__(self, address: str, *, auth: tuple[str, str] | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.address = address.rstrip("/")
        self._http = httpx.Client(base_url=self.address, auth=auth, timeout=READING, transport=transport)

    def send(self, call: Call[Answer]) -> Answer:
        try:
            return _read(call, self._http.request(call.method, call.path, **_arguments(call)))
        except httpx.HTTPError as error:
            raise _unreachable(self.address, error) from error

    def wait(self, job_id: str, watch: Callable[[RemoteJob], None] | None = None) -> RemoteJob:
        """Look at a job until it has ended; `watch` is called at each look."""
        while True:
            found = self.send(job(job_id))
            if watch:
                watch(found)
            if found.ended:
                return found
            time.sleep(POLL)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """As Client, awaited."""

    def __init__(self, address: str, *, auth: tuple[str, str] | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.address = address.rstrip("/")
        self._http = httpx.AsyncClient(base_url=self.address, auth=auth, timeout=READING, transport=transport)

    async def send(self, call: Call[Answer]) -> Answer:
        try:
            return _read(call, await self._http.request(call.method, call.path, **_arguments(call)))
        except httpx.HTTPError as error:
            raise _unreachable(self.address, error) from error

    async def wait(self, job_id: str, watch: Callable[[RemoteJob], None] | None = None) -> RemoteJob:
        """Look at a job until it has ended; `watch` is called at each look."""
        while True:
            found = await self.send(job(job_id))
            if watch:
                watch(found)
            if found.ended:
                return found
            await asyncio.sleep(POLL)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def replay(client: Client, source: bytes | Path, watch: Callable[[RemoteJob], None] | None = None) -> Any:
    """Have the server make a picture again and compare it here: a pipeline.replay.Verdict. What is made is not saved."""
    from modules.pipeline import replay as replaying  # numpy: kept off the start

    def run(request: Request) -> Any:
        ended = client.wait(client.send(submit(request, save=False)).id, watch)
        if ended.error:
            raise ended.error
        return replaying.remade(request, [(one.index, one.infotext, one.complete, client.send(picture(ended.id, one.index)))
                                          for one in ended.pictures])

    return replaying.replay(source, run, lambda kind, name, sha256: name)


# ---- reading answers

def _arguments(call: Call[Any]) -> dict[str, Any]:
    query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in call.query.items()}
    body: dict[str, Any] = {} if call.body is None else {"json": call.body}
    if call.content:
        body = {"content": call.content, "headers": {"Content-Type": "application/octet-stream"}}
    return {**body, **({"params": query} if query else {}), "timeout": None if call.patient else READING}


def _read(call: Call[Answer], answer: httpx.Response) -> Answer:
    if answer.is_success:
        return call.read(answer)
    raise _error(call, answer)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise WebUIError(f"{answer.url} did not answer as Easel does; is another program there?") from error


def _nothing(answer: httpx.Response) -> None:
    return None


def _txt2img(answer: httpx.Response) -> Txt2ImgReply:
    found = _json(answer)
    return Txt2ImgReply(images=tuple(base64.b64decode(image) for image in found["images"]), parameters=found["parameters"],
                        info=json.loads(found["info"]))


def _job(answer: httpx.Response) -> RemoteJob:
    found = _json(answer)
    try:
        seen, error = found["progress"], found["error"]
        return RemoteJob(
            id=found["id"], task_id=found["task_id"], state=found["state"], position=found["position"],
            request=Request.from_json(found["request"]), fraction=seen["fraction"], stage=seen["stage"], step=seen["step"],
            steps=seen["steps"], eta=seen["eta"], error=_of_code(error["code"], error["sentence"]) if error else None,
            warnings=tuple(found["warnings"]),
            pictures=tuple(RemotePicture(**{name: one[name] for name in RemotePicture.__dataclass_fields__}) for one in found["pictures"]))
    except (KeyError, TypeError) as wrong:
        raise WebUIError(f"{answer.url} did not answer as this version of Easel does; start both from the same version.") from wrong


def _of_code(code: str, sentence: str) -> WebUIError:
    """An error of the class that has this code."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, WebUIError) and kind.code == code:
            return kind(sentence)
    return WebUIError(sentence)


def _error(call: Call[Any], answer: httpx.Response) -> WebUIError:
    """A refused call as an error: 422 lists fields, everything else has a sentence in `detail` or `errors`."""
    try:
        found = answer.json()
    except ValueError:
        found = {}
    detail = found.get("detail") if isinstance(found, dict) else None
    if isinstance(detail, list) and detail:
        return RequestError(str(detail[0].get("msg", "A field does not fit.")), field=str((detail[0].get("loc") or [""])[-1]))
    sentence = str(detail or (found.get("errors") if isinstance(found, dict) else "") or f"{answer.url} answered {answer.status_code}.")
    if answer.status_code == 404 and call.path.startswith("/sdapi/") and sentence == "Not Found":
        sentence = "The running Easel does not serve its API; start it with --api."
    kinds = {404: NotFoundError, 503: BusyError}
    error = kinds.get(answer.status_code, WebUIError)(sentence)
    error.status = answer.status_code
    return error


def _unreachable(address: str, error: httpx.HTTPError) -> WebUIError:
    return BusyError(f"Easel at {address} cannot be reached ({type(error).__name__}); is it running, and is the address right?")
