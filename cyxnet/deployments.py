"""Deployments of one caller: make replicas of a model, look after them, ask them (AsyncClient.deployments).

A replica is a job that serves. Everything here is made of such jobs: a deployment grows by submitting more of them,
shrinks by cancelling some, and is replaced by submitting others and cancelling the old ones once those are ready.
"""

import asyncio
import functools
import re
from collections.abc import AsyncGenerator, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.columns import are_named, by_name
from cyxcore.errors import CyxError, SpecError
from cyxcore.paths import check_file
from cyxcore.spec import ModelSpec
from cyxnet import artifacts, subjects
from cyxnet import messages as m
from cyxnet.artifacts import Advance
from cyxnet.asking import CARD, EVENTS, PREDICT, Part, Question
from cyxnet.bus import ApiError
from cyxnet.follow import ENDED, no_model
from cyxnet.inference import PredictReply, Refusal
from cyxnet.questions import PATIENCE_S, Questions

if TYPE_CHECKING:
    from cyxnet.client import AsyncClient

HOUR_S = 3600
LONGEST_S = 28 * 86_400  # of all the time that is bought at once: an escrow ends after 30 days
LOOK_EVERY_S = 0.25
LIVE: tuple[m.ReplicaState, ...] = ("pending", "provisioning", "loading", "ready", "paused", "standby")
OVER: tuple[m.ReplicaState, ...] = ("stopped", "failed")
OF_OTHERS = re.compile(r"[a-z0-9][a-z0-9-]{0,49}-[0-9a-f]{12}")


class NotDeployed(CyxError):
    """Replicas did not become ready. The message says why, and what is left of them."""

    code = "not_deployed"


class Source(Struct, frozen=True, kw_only=True):
    """What is to be served. path None: it is stored on the network already."""

    name: str
    file: m.ArtifactRef
    format: m.ModelFormat
    path: Path | None = None


class Size(Struct, frozen=True):
    """How many replicas are at work, from least to most, and how often each may be followed by another of its kind.

    check() raises SpecError for so many renewals that an escrow does not last as long.
    """

    least: int = 1
    most: int = 1
    renewals: int = 0

    def check(self, hours: float) -> None:
        if (days := hours * (1 + self.renewals) * HOUR_S / 86_400) > LONGEST_S / 86_400:
            raise SpecError(
                f"expected at most {LONGEST_S // 86_400} days with all renewals, since an escrow ends after 30; "
                f"{1 + self.renewals} times {hours:g} h are {days:.1f}: buy more later, with cyx extend"
            )

    @property
    def standby(self) -> int:
        """How many are bought that wait to be called."""
        return self.most * (1 + self.renewals) - self.least

    @property
    def bounds(self) -> dict[str, Any]:
        """Of ServeSpec; nothing where nobody ever stands by."""
        return {"least": self.least, "most": self.most} if self.standby else {}


class Deployments:
    """What one caller has deployed, through its client."""

    def __init__(self, client: "AsyncClient"):
        self._client = client

    # -- making --------------------------------------------------------------------------------------

    async def source(self, model: str | Path) -> Source:
        """A model file, or the model that a completed job delivered.

        Raises SpecError for a file of another kind, FormatError for what is none, ApiError or NoModel for a job.
        """
        path = Path(model)
        if path.is_file() or path.suffix.lower().removeprefix(".") in get_args(m.ModelFormat):
            form = path.suffix.lower().removeprefix(".")
            if form not in get_args(m.ModelFormat):
                endings = ", ".join(f".{each}" for each in get_args(m.ModelFormat))
                raise SpecError(f"{path}: expected a model file whose name ends in one of {endings}")
            check_file(path)
            found = await asyncio.to_thread(artifacts.describe, path)
            file = m.ArtifactRef(sha256=found.sha256, size=found.size)
            return Source(name=path.stem, file=file, format=form, path=path)  # type: ignore[arg-type]
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", str(model)):
            raise SpecError(f"{model}: there is no such file, and no job is called so")
        view = await self._client.job(str(model))
        if view.model is None:
            raise SpecError(no_model(view))
        if view.sealed:
            raise SpecError(
                f"job {view.job_id}: its model is sealed, and no node could serve it; deploy the file of cyx get, if "
                "others may read it"
            )
        return Source(name=view.name, file=view.model, format="cyxmodel")

    def id_of(self, name: str) -> str:
        """The deployment that this caller calls so."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "model"
        return subjects.deployment_id(slug, self._client.caller)

    async def request(
        self,
        source: Source,
        deployment: str,
        *,
        hours: float = 1.0,
        amount_base_units: int | None = None,
        price_per_hour_base_units: int | None = None,
        needs: m.Needs | None = None,
        **options: Any,
    ) -> m.JobRequest:
        """One replica, as a job. What it costs is the amount, or the price of its hours, or the highest that nodes ask.

        options: of ServeSpec: public, max_batch, context and so on; Size.bounds.
        """
        seconds = max(1, round(hours * HOUR_S))
        spec = m.ServeSpec(deployment=deployment, format=source.format, seconds=seconds, **options)
        job = m.JobRequest(
            name=source.name[:100],
            model=ModelSpec(),
            dataset=source.file,
            serve=spec,
            needs=needs or m.Needs(),
            amount_base_units=amount_base_units or 1,
        )
        if amount_base_units is not None:
            return job
        if price_per_hour_base_units is None:
            quote = await self._client.quote(job)
            asked = [each.price_per_hour_base_units for each in quote.prices]
            price_per_hour_base_units = max(asked, default=0) or DEFAULT_PRICE_BASE_UNITS
        return replace(job, amount_base_units=max(1, -(-price_per_hour_base_units * seconds // HOUR_S)))

    async def deploy(
        self,
        model: str | Path,
        replicas: "int | tuple[int, int]" = 1,
        *,
        renewals: int = 0,
        name: str = "",
        on_upload: Advance | None = None,
        **options: Any,
    ) -> str:
        """Serve a model file, or the model of a completed job; returns the deployment once its replicas are ready.

        replicas: (least, most) for as many as its questions need. renewals: how often each is followed by another of
        its kind when its hours are used. options: of request(). Raises what source(), request(), add() and ready()
        raise.
        """
        least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
        size = Size(least, most, renewals)
        size.check(options.get("hours", 1.0))
        source = await self.source(model)
        source = replace(source, name=name or source.name)
        deployment = self.id_of(source.name)
        job = await self.request(source, deployment, **size.bounds, **options)
        working = await self.add(job, size.least, source.path, on_upload)
        await self.add(standing_by(job), size.standby)
        await self.ready(deployment, working)
        return deployment

    async def add(
        self,
        job: m.JobRequest,
        replicas: int,
        path: Path | None = None,
        on_upload: Advance | None = None,
        made: list[str] | None = None,
    ) -> list[str]:
        """Pay for so many more replicas; returns their jobs. path: of the model file, when it is not stored yet.

        Raises what submit() raises; replicas that were submitted before go on, and `made` names them, and the one that
        nobody answered for: it may go on, too.
        """
        made = [] if made is None else made
        for _ in range(replicas):
            prepared = await self._client.prepare(job, path, stored=path is None)
            try:
                made.append((await self._client.place(prepared, on_upload)).job_id)
            except BaseException:
                if prepared.unanswered:
                    made.append(prepared.job_id)
                raise
        return made

    async def ready(
        self, deployment: str, job_ids: list[str], tell: Callable[[m.ReplicaView], None] = lambda replica: None
    ) -> None:
        """Wait until all of these are ready; tell of each new state. Raises NotDeployed when one ends before."""
        told: dict[str, str] = {}
        while True:
            found = await self.find(deployment, ended=True)
            mine = [each for each in found.replicas if each.job_id in job_ids]
            for each in mine:
                if told.get(each.job_id) != each.state:
                    told[each.job_id] = each.state
                    tell(each)
                if each.state in OVER:
                    why = each.error or f"it was {each.status}"
                    raise NotDeployed(f"replica {each.job_id} of {found.deployment} is not ready: {why}")
            for job_id in sorted(set(job_ids) - {each.job_id for each in mine}) if found.untold else ():
                view = await self._client.job(job_id)  # perhaps it has ended, and those are told last
                if view.status in ENDED:
                    why = view.error or f"it was {view.status}"
                    raise NotDeployed(f"replica {job_id} of {found.deployment} is not ready: {why}")
            if len(mine) == len(job_ids) and all(each.state == "ready" for each in mine):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    # -- looking after them --------------------------------------------------------------------------

    async def all(self, beginning: str = "", *, ended: bool = False, limit: int = 50) -> m.DeploymentList:
        """This caller's deployments, those of the newest replica first."""
        request = m.DeploymentListRequest(deployment=beginning, ended=ended, limit=limit)
        return await self._client._ask("deployment.list", request, m.DeploymentList)

    async def find(self, deployment: str, *, ended: bool = False) -> m.DeploymentView:
        """The deployment of this id, or of a beginning that only one has. Raises ApiError (404, 409)."""
        found = (await self.all(deployment, ended=ended)).deployments
        whole = [each for each in found if deployment in (each.deployment, each.deployment[:-13])]
        if len(whole or found) == 1:
            return (whole or found)[0]
        if not found:
            over = "" if ended else ", or it has ended (--ended shows those)"
            raise ApiError(
                "unknown_deployment", f"no deployment is called {deployment}{over}; see: cyx deployments", 404
            )
        some = ", ".join(each.deployment for each in found[:5])
        raise ApiError("ambiguous_deployment", f"several deployments begin with {deployment}: {some}", 409)

    async def _own(self, deployment: str) -> m.DeploymentView:
        """The same, of this caller's: of somebody else's public one no replica is known, and none can be ended."""
        found = await self.find(deployment)
        if not subjects.is_owned(found.deployment, self._client.caller):
            raise ApiError("not_yours", f"the deployment {found.deployment} is somebody else's", 403)
        return found

    async def extend(self, deployment: str, hours: float, replicas: int | None = None) -> list[str]:
        """Buy so many hours more for each replica that is to be at work (or for so many), at the price of the newest.

        They stand by, and each is called when the time of another is nearly used up. Returns their jobs.
        """
        found = await self._own(deployment)
        newest = found.newest
        if newest is None or newest.serve is None:
            raise ApiError("unknown_deployment", f"{found.deployment} has no replica to make others like", 404)
        live = [each for each in found.replicas if each.state in LIVE]
        working = [each for each in live if each.state != "standby"]
        before, seconds = newest.serve, max(1, round(hours * HOUR_S))
        least = before.least or max(1, len(working))
        count = replicas or least
        left_s = sum(each.bought_s - each.served_ms / 1000 for each in live)
        if (total_s := (left_s + seconds * count) / least) > LONGEST_S:
            raise SpecError(
                f"expected at most {LONGEST_S // 86_400} days from now on, since an escrow ends after 30; with those "
                f"{hours:g} h {found.deployment} would have {total_s / 86_400:.1f}"
            )
        serve = replace(before, seconds=seconds, least=least, most=max(before.most, least))
        amount = -(-newest.amount_base_units * seconds // before.seconds)
        return await self.add(standing_by(replace(newest, serve=serve, amount_base_units=max(1, amount))), count)

    async def undeploy(self, deployment: str) -> m.DeploymentView:
        """End every replica: it answers what it has taken, its node is paid for its time, the rest comes back."""
        found = await self._own(deployment)
        await self._end_all(found, "undeployed")
        return found

    async def scale(self, deployment: str, replicas: int, on_upload: Advance | None = None) -> tuple[int, list[str]]:
        """Bring a deployment to so many replicas. Returns how many were ended, and the jobs of those that were added.

        A new one is as the newest is, bought for as long. Those that are not ready end first, then the newest.
        """
        found = await self._own(deployment)
        if found.newest and found.newest.serve and (most := found.newest.serve.most):
            raise ApiError(
                "scales_by_itself",
                f"{found.deployment} has {found.newest.serve.least} to {most} replicas, as it needs them; for other "
                f"bounds: cyx deploy MODEL --replace {found.deployment} --replicas MIN:MAX",
                409,
            )
        live = [each for each in found.replicas if each.state in LIVE]
        more = replicas - len(live) - found.untold
        if more > 0:
            if found.newest is None:
                raise ApiError("unknown_deployment", f"{found.deployment} has no replica to make others like", 404)
            return 0, await self.add(found.newest, more, None, on_upload)
        live.sort(key=lambda each: each.state == "ready")  # and of each kind the newest first, as they are told
        ended = live[:-more] if more else []
        await self._end(ended, "scaled down")
        return len(ended), []

    async def replace(
        self,
        deployment: str,
        job: m.JobRequest,
        path: Path | None = None,
        tell: Callable[[m.ReplicaView], None] = lambda replica: None,
        on_upload: Advance | None = None,
        replicas: int | None = None,
        standby: int = 0,
    ) -> list[str]:
        """Serve another model under the same id: as many new replicas, and when all are ready the old ones end.

        standby: so many more that wait to be called. If a new one fails, the new ones are ended and the old ones stay:
        NotDeployed.
        """
        found = await self._own(deployment)
        working = sum(each.state in LIVE and each.state != "standby" for each in found.replicas)
        made: list[str] = []
        try:
            await self.add(job, replicas or max(1, working), path, on_upload, made)
            await self.ready(found.deployment, list(made), tell)
            await self.add(standing_by(job), standby, None, None, made)
        except BaseException:
            await asyncio.shield(self._cancel(made, "its replacement failed"))
            raise
        await self._end_all(found, "replaced", made)
        return made

    async def _end_all(self, found: m.DeploymentView, reason: str, but: Collection[str] = ()) -> None:
        """End all replicas but these, also those of which nothing is told before others have ended."""
        done = set(but)
        while live := [each for each in found.replicas if each.state in LIVE and each.job_id not in done]:
            standby = [each for each in live if each.state == "standby"]
            due = standby if found.untold and standby else live
            await self._end(due, reason)
            done.update(each.job_id for each in due)
            if len(due) == len(live) and not found.untold:
                return
            try:
                found = await self.find(found.deployment)
            except ApiError as error:
                if error.code != "unknown_deployment":  # nothing is left of it
                    raise
                return

    async def _end(self, replicas: list[m.ReplicaView], reason: str) -> None:
        """Those that stand by first: else one of them would be called for each that ends."""
        ordered = sorted(replicas, key=lambda each: each.state != "standby")
        await self._cancel([each.job_id for each in ordered], reason)

    async def _cancel(self, job_ids: list[str], reason: str) -> None:
        for job_id in job_ids:
            try:
                await self._client.cancel(job_id, reason)
            except ApiError as error:
                if error.code not in ("too_late", "unknown_job"):  # it has ended by itself, or was never taken
                    raise

    # -- asking --------------------------------------------------------------------------------------

    @functools.cached_property
    def questions(self) -> Questions:
        return Questions(self._client.bus, self._client.caller)

    async def whole_id(self, deployment: str) -> str:
        """The id of one of this caller's deployments by its beginning; the whole id of anybody's is taken as it is."""
        if OF_OTHERS.fullmatch(deployment):
            return deployment
        return (await self.find(deployment)).deployment

    async def ask(
        self, deployment: str, body: Any = None, route: str = PREDICT, *, patience_s: float = PATIENCE_S
    ) -> Any:
        """What a route of the HTTP API answers, from JSON to JSON. Raises ApiError for a refusal, NoReplica."""
        question = Question(body=b"" if body is None else msgspec.json.encode(body), route=route)
        whole = await self.questions.answer(await self.whole_id(deployment), question, patience_s=patience_s)
        refuse(whole)
        return msgspec.json.decode(whole.body) if whole.content_type.startswith("application/json") else whole.body

    async def predict(self, deployment: str, input: Any, classes: bool = False) -> PredictReply:
        """The answer to one sample, or to a list of samples: nested lists, an array, or what NumPy makes one of.

        Of a table with named columns the model's own are sent, by name. Raises ShapeError where one is missing.
        """
        if are_named(input):
            input = by_name(input, (await self.ask(deployment, route=CARD)).get("feature_names"))
        array = input.__array__() if hasattr(input, "__array__") and not hasattr(input, "tolist") else input  # a table
        values = array.tolist() if hasattr(array, "tolist") else array
        body: dict[str, Any] = {"input": values} | ({"classes": True} if classes else {})
        return msgspec.convert(await self.ask(deployment, body), PredictReply)

    async def stream(
        self, deployment: str, body: Any, route: str, *, patience_s: float = PATIENCE_S
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an answer as they are made: server-sent events of the OpenAI API, when body says stream.

        Raises ApiError for a refusal, NoReplica, BrokenOff.
        """
        question = Question(body=msgspec.json.encode(body), route=route, accept=EVENTS)
        parts = self.questions.ask(await self.whole_id(deployment), question, patience_s=patience_s)
        try:
            async for part in parts:
                refuse(part)
                yield part.body
        finally:
            await parts.aclose()


DEFAULT_PRICE_BASE_UNITS = 1_000_000_000  # of an hour, where no node that fits asks for anything


def standing_by(job: m.JobRequest) -> m.JobRequest:
    """The same replica, but waiting to be called."""
    assert job.serve is not None
    return replace(job, serve=replace(job.serve, standby=True))


def refuse(part: Part) -> None:
    """Raises ApiError for an answer that is a no."""
    if part.status < 400:
        return
    try:
        fault = msgspec.json.decode(part.body, type=Refusal).error
    except msgspec.MsgspecError:
        raise ApiError("refused", f"the replica answered with status {part.status}", part.status) from None
    raise ApiError(fault.code, fault.message, part.status)
