"""The client without async: the same methods, run on an event loop in a thread of its own.

with cyxnet.Client(".cyx") as client:
    job = client.submit("digits.toml")
    model = job.model()          # waits, fetches and opens it
"""

import asyncio
import contextlib
import secrets
import tempfile
import threading
import warnings
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from cyxnet import messages as m
from cyxnet import outbox
from cyxnet.artifacts import Advance
from cyxnet.asking import PREDICT
from cyxnet.client import AsyncClient, NoModel
from cyxnet.config import DEFAULT_FOLDER
from cyxnet.inference import PredictReply
from cyxnet.jobfile import LoadedJob, load
from cyxnet.outbox import Kept

T = TypeVar("T")
STOP_S = 5.0  # for work that is stopped to come to its end


class Client:
    """One caller on one network; see AsyncClient for what each method does and raises."""

    def __init__(self, folder: str | Path = DEFAULT_FOLDER, *, url: str | None = None, tls_ca: str = ""):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cyx-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(AsyncClient.connect(folder, url=url, tls_ca=tls_ca))
        except BaseException:
            self._stop_loop()
            raise

    def __repr__(self) -> str:
        return f"Client({self._client.caller!r}{', closed' if self._loop.is_closed() else ''})"

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._stop_loop()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The address of this client's wallet."""
        return self._client.purse.address

    def info(self) -> m.NetworkInfo:
        return self._run(self._client.info())

    def nodes(self, limit: int | None = None, **filters: Any) -> list[m.NodeView]:
        return self._run(self._client.nodes(limit, **filters))

    def why(self, node_id: str) -> m.NodeWhyReply:
        return self._run(self._client.why(node_id))

    def ban(self, node_id: str, reason: str, for_s: int | None = None) -> m.NodeView:
        return self._run(self._client.ban(node_id, reason, for_s))

    def pardon(self, node_id: str, reason: str = "pardoned by an operator") -> m.NodeView:
        return self._run(self._client.pardon(node_id, reason))

    def wallet(self, address: str | None = None) -> m.WalletReply:
        return self._run(self._client.wallet(address))

    def faucet(self, amount_base_units: int = 100_000_000_000, lamports: int = 1_000_000_000) -> m.FaucetReply:
        return self._run(self._client.faucet(amount_base_units, lamports))

    def ledger(self, sql: str, limit: int = 1000) -> m.LedgerReply:
        return self._run(self._client.ledger(sql, limit))

    def quote(self, job: m.JobRequest, job_id: str | None = None) -> m.Quote:
        return self._run(self._client.quote(job, job_id))

    def submit(
        self,
        job: "str | Path | LoadedJob | m.JobRequest | Any",
        data: "str | Path | tuple[Any, Any] | None" = None,
        amount: str | int | None = None,
        *,
        on_upload: Advance | None = None,
        keep: bool = False,
        **options: Any,
    ) -> "Job":
        """Pay for a job and submit it. keep: into the outbox, when nobody answers; not with a module.

        job: the path of a job file, a LoadedJob, a JobRequest with `data`, or a cyxcore module with `data` (a file, or
        arrays (inputs, targets)), `amount` and the options of AsyncClient.submit_module. What is odd but possible in a
        job is a warning.
        """
        if data is not None and isinstance(job, str | Path | LoadedJob):
            raise TypeError("data goes with a module or a JobRequest; a job file names its own")
        if isinstance(job, str | Path):
            with self._loaded(job) as loaded:
                for warning in loaded.warnings:
                    warnings.warn(f"{loaded.name}: {warning}", stacklevel=2)
                return self.submit(loaded, None, amount, on_upload=on_upload, keep=keep, **options)
        if isinstance(job, LoadedJob | m.JobRequest):
            if amount is not None or options:
                raise TypeError("amount and options go with a module; a job holds its own")
            if isinstance(data, tuple):
                raise TypeError("arrays go with a module; a JobRequest names a file by its digest")
            path = Path(data) if data is not None else None
            reply = self._run(self._client.submit(job, path, on_upload, keep=keep))
        elif not callable(job):
            got = type(job).__name__
            raise TypeError(f"expected the path of a job file, a LoadedJob, a JobRequest or a module, got {got}")
        elif keep:
            raise TypeError("keep goes with a job file or a JobRequest: a module's weights are nowhere but here")
        elif data is None or amount is None:
            raise TypeError("a module needs data (a path, or arrays) and amount (CYX, such as '2.5')")
        else:
            reply = self._run(self._client.submit_module(job, data, amount, on_upload=on_upload, **options))
        return Job(self, reply.job_id)

    def run(self, path: str | Path, run: str | None = None) -> "dict[str, Job]":
        """Submit the jobs of a workflow file, and pay for all of them. Returns them by name, in their order.

        run: of one that broke off, to go on with it: the ten hex digits that the ids of its jobs end in, and that a
        note of the error tells. A job that could never begin, as one before it has failed already, is not among them.
        """
        from cyxnet import workflow

        folder = self._client.folder
        found = workflow.load(path, folder / "packed" if folder else None)
        again, run = run is not None, run or secrets.token_hex(5)
        try:
            ids = self._run(workflow.submit(self._client, found, run, again=again))
        except BaseException as error:
            error.add_note(f"to go on with this workflow: run({str(path)!r}, run={run!r})")
            raise
        finally:
            found.discard()
        return {step: Job(self, job_id) for step, job_id in ids.items()}

    @contextlib.contextmanager
    def _loaded(self, path: str | Path) -> Iterator[LoadedJob]:
        """The job of a file. Data that was packed or fetched for it goes at the end, unless it is kept for later."""
        folder = self._client.folder
        job = load(path, folder / "packed" if folder else None)
        try:
            yield job
        finally:
            if job.fetched:
                outbox.discard_unless_kept(folder, job.data_path)

    def kept(self) -> list[Kept]:
        return self._client.kept()

    def send_kept(self, kept: Kept, on_upload: Advance | None = None) -> "Job":
        reply = self._run(self._client.send_kept(kept, on_upload=on_upload))
        return Job(self, reply.job_id)

    def forget_kept(self, kept: Kept) -> None:
        self._client.forget_kept(kept)

    def job(self, job_id: str) -> m.JobView:
        return self._run(self._client.job(job_id))

    def jobs(self, status: m.JobStatus | None = None, limit: int = 50, **filters: Any) -> m.JobList:
        return self._run(self._client.jobs(status, limit, **filters))

    def explain(self, job_id: str) -> m.ExplainReply:
        return self._run(self._client.explain(job_id))

    def cancel(self, job_id: str, reason: str = "cancelled by the client") -> m.JobView:
        return self._run(self._client.cancel(job_id, reason))

    def pause(self, job_id: str) -> m.JobView:
        return self._run(self._client.pause(job_id))

    def resume(self, job_id: str) -> m.JobView:
        return self._run(self._client.resume(job_id))

    def priority(self, job_id: str, priority: int) -> m.JobView:
        return self._run(self._client.priority(job_id, priority))

    def watch(self, job_id: str) -> Iterator[m.Update]:
        """Every update of a job, from its first event to its end."""
        updates = self._client.watch(job_id)
        try:
            while (update := self._run(_next(updates))) is not None:
                yield update
        finally:
            self._run(updates.aclose())

    def epochs(self, job_id: str) -> list[dict[str, Any]]:
        """The epochs of a job that have ended, in order: the fields of cyxcore.spec.EpochMetrics and `attempt`."""
        return self._run(self._client.epochs(job_id))

    def wait(self, job_id: str) -> m.JobView:
        return self._run(self._client.wait(job_id))

    def download(self, job_id: str, out_path: str | Path, progress: Advance | None = None) -> m.ArtifactRef:
        return self._run(self._client.download(job_id, out_path, progress))

    def deploy(
        self,
        model: "str | Path | Job",
        replicas: int | tuple[int, int] = 1,
        *,
        name: str = "",
        on_upload: Advance | None = None,
        **options: Any,
    ) -> str:
        """Have nodes serve a model file, or the model of a completed job; returns the deployment once it is ready.

        replicas: (least, most) for as many as its questions need. options: renewals, and those of
        AsyncClient.deployments.request: hours, amount_base_units, needs, public and so on.
        """
        source = model.id if isinstance(model, Job) else model
        return self._run(self._client.deployments.deploy(source, replicas, name=name, on_upload=on_upload, **options))

    def deployments(self, beginning: str = "", *, ended: bool = False) -> list[m.DeploymentView]:
        return self._run(self._client.deployments.all(beginning, ended=ended)).deployments

    def extend(self, deployment: str, hours: float, replicas: int | None = None) -> list[str]:
        """Buy a deployment more time, at the price it has; returns the jobs that will follow those it has."""
        return self._run(self._client.deployments.extend(deployment, hours, replicas))

    def undeploy(self, deployment: str) -> m.DeploymentView:
        return self._run(self._client.deployments.undeploy(deployment))

    def predict(self, deployment: str, input: Any, classes: bool = False) -> PredictReply:
        """The answer of a deployed model to one sample, or to a list of samples."""
        return self._run(self._client.deployments.predict(deployment, input, classes))

    def ask(self, deployment: str, body: Any = None, route: str = PREDICT) -> Any:
        """What a route of the HTTP API answers (docs/serving.md), from JSON to JSON."""
        return self._run(self._client.deployments.ask(deployment, body, route))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed")
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C here must not leave the request running there
            ended.wait(STOP_S)  # what it keeps in the outbox is there before anybody looks
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Job:
    """A submitted job."""

    def __init__(self, client: Client, job_id: str):
        self.client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> m.JobView:
        return self.client.job(self.id)

    def wait(self) -> m.JobView:
        """The job when it has ended."""
        return self.client.wait(self.id)

    def watch(self) -> Iterator[m.Update]:
        return self.client.watch(self.id)

    def epochs(self) -> list[dict[str, Any]]:
        return self.client.epochs(self.id)

    def cancel(self, reason: str = "cancelled by the client") -> m.JobView:
        return self.client.cancel(self.id, reason)

    def pause(self) -> m.JobView:
        return self.client.pause(self.id)

    def resume(self) -> m.JobView:
        return self.client.resume(self.id)

    def priority(self, priority: int) -> m.JobView:
        return self.client.priority(self.id, priority)

    def model(self) -> Any:
        """Wait for the end and open the delivered model (cyxcore.load_model). Raises NoModel when there is none."""
        import cyxcore

        view = self.wait()
        if view.status != "completed":
            raise NoModel(f"job {self.id} is {view.status}{f': {view.error}' if view.error else ''}")
        with tempfile.TemporaryDirectory(prefix="cyx-model-") as folder:
            path = Path(folder) / f"{self.id}.cyxmodel"
            self.client.download(self.id, path)
            return cyxcore.load_model(path)


async def _next(updates: Any) -> m.Update | None:
    return await anext(updates, None)
