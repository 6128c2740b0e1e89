"""What is made of a wish for a deployment: which jobs are submitted and which are cancelled, in which order."""

import argparse
import asyncio
import contextlib
import io
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from cyxcore.errors import SpecError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.asking import Part
from cyxnet.bus import ApiError, BusError
from cyxnet.cli import deployments as commands
from cyxnet.cli.deployments import _size_of, _tell_room
from cyxnet.cli.screen import PlainScreen
from cyxnet.deployments import DEFAULT_PRICE_BASE_UNITS, Deployments, NotDeployed, Size, refuse

FILE = m.ArtifactRef(sha256="a" * 64, size=9)
MINE = subjects.deployment_id("digits", "c-1")


class Central:
    """As much of a client and its central as deployments are made of: jobs, in the order of their submission.

    becomes: the states of the replicas that are submitted, one after the other.
    """

    caller = "c-1"

    def __init__(self, *states, becomes=()):
        self.replicas = [self.replica(f"job-{number}", state) for number, state in enumerate(states)]
        self.becomes, self.said, self.prices = list(becomes), [], []
        self.placed, self.newest, self.told = [], JOB, 200

    def replica(self, job_id, state):
        set_back_ms = -int(job_id.rpartition("-")[2])  # by the clock of a central that each time is another one
        return m.ReplicaView(job_id=job_id, state=state, status="leased", since_ms=0, submitted_at_ms=set_back_ms)

    async def quote(self, job):
        prices = [
            m.NodePrice(node_id="n", name="n", seconds=1.0, price_per_hour_base_units=price, base_units=0)
            for price in self.prices
        ]
        return m.Quote(
            **dict.fromkeys(
                ("node_base_units platform_base_units balance_base_units memory_bytes "
                 "flops_per_epoch parameters eligible_nodes").split(),
                0,
            ),
            job_id="job", terms=None, prices=prices,
        )  # fmt: skip

    async def prepare(self, job, path, *, stored=False):
        return SimpleNamespace(job_id=f"job-{len(self.replicas)}", job=job, unanswered=0)

    async def place(self, prepared, on_upload=None):
        self.placed.append(prepared.job)
        made = self.replica(f"job-{len(self.replicas)}", self.becomes.pop(0))
        self.replicas.append(made)
        self.said.append(f"+{made.job_id}")
        return m.SubmitReply(job_id=made.job_id, status="funding", terms=None)

    async def cancel(self, job_id, reason):
        self.said.append(f"-{job_id}")
        number = int(job_id.rpartition("-")[2])
        if number >= len(self.replicas):
            raise ApiError("unknown_job", "no job is called so", 404)
        replica = self.replicas[number]
        if replica.state == "stopped":
            raise ApiError("too_late", "it has ended", 409)
        replica.state = "stopped"

    async def _ask(self, verb, request, reply):
        found = [each for each in self.replicas if request.ended or each.state not in ("stopped", "failed")]
        if not found or not MINE.startswith(request.deployment):
            return m.DeploymentList(deployments=[])
        standby = [each for each in found if each.state == "standby"]
        told = [*(each for each in found[::-1] if each.state != "standby"), *standby][: self.told]
        untold = len(found) - len(told)
        told.sort(key=lambda each: each.submitted_at_ms)
        view = m.DeploymentView(
            deployment=MINE, name="digits", ready=0, replicas=told, newest=self.newest, untold=untold
        )
        return m.DeploymentList(deployments=[view])


SPEC = m.ServeSpec(deployment=MINE, format="onnx", seconds=3600)
JOB = m.JobRequest(name="digits", model=m.ModelSpec(), dataset=FILE, amount_base_units=5, serve=SPEC)


async def test_a_file_is_told_by_its_ending(tmp_path):
    path = tmp_path / "Digits 2.onnx"
    path.write_bytes(b"weights")
    deployments = Deployments(Central())
    source = await deployments.source(path)
    assert (source.name, source.format, source.file.size) == ("Digits 2", "onnx", 7)
    assert deployments.id_of(source.name) == subjects.deployment_id("digits-2", "c-1")


@pytest.mark.parametrize(("model", "said"), [("model.pt", "no such file"), ("Digits!", "no such file")])
async def test_what_is_neither_a_model_nor_a_job_is_one_clear_error(model, said):
    with pytest.raises(SpecError, match=said):
        await Deployments(Central()).source(model)


async def test_a_file_of_another_kind_is_refused_by_its_ending(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    with pytest.raises(SpecError, match=r"ends in one of \.cyxmodel, \.safetensors, \.onnx, \.gguf"):
        await Deployments(Central()).source(path)


@pytest.mark.parametrize(
    ("prices", "options", "amount"),
    [
        ([], {}, 2 * DEFAULT_PRICE_BASE_UNITS),
        ([0], {}, 2 * DEFAULT_PRICE_BASE_UNITS),
        ([7, 3], {}, 14),
        ([7], {"price_per_hour_base_units": 1}, 2),
        ([7], {"amount_base_units": 5}, 5),
    ],
)
async def test_a_replica_costs_its_hours(tmp_path, prices, options, amount):
    central = Central()
    central.prices = prices
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"weights")
    deployments = Deployments(central)
    job = await deployments.request(await deployments.source(path), MINE, hours=2, **options)
    assert (job.amount_base_units, job.serve.seconds) == (amount, 7200)


async def test_more_replicas_are_as_the_newest_is():
    central = Central("ready", becomes=["pending", "pending"])
    assert await Deployments(central).scale("digits", 3) == (0, ["job-1", "job-2"])


async def test_of_too_many_those_that_are_not_ready_end_first_and_then_the_newest():
    central = Central("ready", "pending", "ready", "loading")
    assert await Deployments(central).scale("digits", 1) == (3, [])
    assert central.said == ["-job-3", "-job-1", "-job-2"]


async def test_as_many_as_there_are_changes_nothing():
    central = Central("ready", "ready")
    assert (await Deployments(central).scale("digits", 2), central.said) == ((0, []), [])


async def test_the_old_replicas_end_only_when_the_new_ones_are_ready():
    central = Central("ready", "ready", becomes=["ready", "ready"])
    await Deployments(central).replace("digits", JOB)
    assert central.said == ["+job-2", "+job-3", "-job-1", "-job-0"]


async def test_if_a_new_one_fails_the_new_ones_end_and_the_old_ones_stay():
    central = Central("ready", "ready", becomes=["ready", "failed"])
    with pytest.raises(NotDeployed, match="job-3 .*is not ready"):
        await Deployments(central).replace("digits", JOB)
    assert central.said == ["+job-2", "+job-3", "-job-2", "-job-3"]


async def test_who_stops_waiting_for_a_replacement_keeps_the_old_ones():
    central = Central("ready", becomes=["loading"])
    replacing = asyncio.create_task(Deployments(central).replace("digits", JOB))
    while not central.said:
        await asyncio.sleep(0)
    replacing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replacing
    assert central.said == ["+job-1", "-job-1"]


async def test_undeploy_ends_all_and_one_that_has_just_ended_is_no_error():
    central = Central("ready", "ready")
    found = await Deployments(central).find("digits")
    central.replicas[0].state = "stopped"
    await Deployments(central)._end(found.replicas, "undeployed")
    assert central.said == ["-job-1", "-job-0"]


async def test_a_deployment_that_is_not_there_is_one_clear_error():
    with pytest.raises(ApiError, match="no deployment is called cats, or it has ended .*; see: cyx deployments"):
        await Deployments(Central("ready")).find("cats")


async def test_the_whole_id_of_somebody_elses_is_taken_as_it_is():
    theirs = subjects.deployment_id("cats", "c-2")
    assert await Deployments(Central()).whole_id(theirs) == theirs


def test_a_refusal_says_what_the_replica_said():
    body = b'{"error":{"message":"expected 64 numbers","type":"t","param":null,"code":"bad_input"}}'
    with pytest.raises(ApiError, match="expected 64 numbers") as caught:
        refuse(Part(body=body, status=400))
    assert (caught.value.code, caught.value.status) == ("bad_input", 400)
    with pytest.raises(ApiError, match="status 502"):
        refuse(Part(body=b"<html>", status=502))


async def test_undeploy_ends_those_that_central_does_not_tell_of_at_once_before_any_that_is_at_work():
    central = Central("ready", *["standby"] * 7, "ready")
    central.told = 4
    await Deployments(central).undeploy("digits")
    assert sorted(central.said) == sorted(f"-job-{number}" for number in range(9))
    assert {*central.said[-2:]} == {"-job-0", "-job-8"}


async def test_what_replaces_very_many_ends_them_all_and_none_of_its_own():
    central = Central("ready", *["standby"] * 5, becomes=["ready", "standby", "standby"])
    central.told = 3
    await Deployments(central).replace("digits", JOB, standby=2)
    assert [each.state for each in central.replicas] == ["stopped"] * 6 + ["ready", "standby", "standby"]


def test_who_replaces_a_deployment_buys_as_many_as_have_not_ended():
    states = ("ready", "stopped", "failed", "loading")  # of which two are being settled
    found = m.DeploymentView(
        deployment=MINE, name="digits", ready=1, replicas=[Central().replica("job-1", each) for each in states]
    )
    assert _size_of(found, 1) == Size(2, 2, 1)


async def test_scaling_counts_those_that_are_not_told():
    central = Central(*["ready"] * 5)
    central.told = 3
    assert await Deployments(central).scale("digits", 4) == (1, [])


@pytest.mark.parametrize("change", ["undeploy", "scale", "replace"])
async def test_nobody_is_told_that_a_deployment_of_somebody_else_was_changed(change):
    central = Central("ready")
    central.caller = "c-2"  # to whom that of c-1, which is public, is shown
    arguments = {"undeploy": (), "scale": (0,), "replace": (JOB,)}[change]
    with pytest.raises(ApiError, match=f"{MINE} is somebody else's"):
        await getattr(Deployments(central), change)(MINE, *arguments)
    assert central.said == []


async def test_if_one_of_the_new_ones_cannot_be_paid_those_before_it_end():
    central = Central("ready", "ready", becomes=["ready"])
    place = central.place

    async def poor(job, on_upload=None):
        if not central.becomes:
            raise ApiError("insufficient_funds", "the wallet is empty", 402)
        return await place(job, on_upload)

    central.place = poor
    with pytest.raises(ApiError, match="the wallet is empty"):
        await Deployments(central).replace(MINE, JOB)
    assert central.said == ["+job-2", "-job-2"]


@pytest.mark.parametrize("taken", [True, False])
async def test_if_nobody_answers_for_one_of_the_new_ones_it_ends_with_those_before_it_where_it_was_taken(taken):
    # it went on beside the old ones, paid for
    central = Central("ready", "ready", becomes=["ready", "ready"])
    place = central.place

    async def unanswered(prepared, on_upload=None):
        if len(central.becomes) == 2:
            return await place(prepared, on_upload)
        if taken:
            await place(prepared, on_upload)
        prepared.unanswered = 1
        raise BusError("no answer")

    central.place = unanswered
    with pytest.raises(BusError, match="no answer"):
        await Deployments(central).replace(MINE, JOB)
    assert central.said == ["+job-2", *(["+job-3"] if taken else []), "-job-2", "-job-3"]


# -- that grow, and go on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "standby", "bounds"),
    [
        (Size(3, 3), 0, {}),
        (Size(1, 4), 3, {"least": 1, "most": 4}),
        (Size(2, 2, 1), 2, {"least": 2, "most": 2}),
        (Size(2, 5, 2), 13, {"least": 2, "most": 5}),
    ],
)
def test_the_most_there_can_be_is_bought_beforehand(size, standby, bounds):
    assert (size.standby, size.bounds) == (standby, bounds)


def test_more_time_than_an_escrow_lasts_is_refused():
    Size(1, 4, 2).check(224)
    with pytest.raises(SpecError, match=r"at most 28 days .* 3 times 225 h are 28\.1: buy more later, with cyx extend"):
        Size(1, 4, 2).check(225)


async def test_those_that_stand_by_are_bought_behind_those_that_work_and_not_waited_for(tmp_path):
    central = Central(becomes=["ready", "standby", "standby"])
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"weights")
    assert await Deployments(central).deploy(path, (1, 3), amount_base_units=5) == MINE
    assert [(job.serve.standby, job.serve.least, job.serve.most) for job in central.placed] == [
        (False, 1, 3),
        (True, 1, 3),
        (True, 1, 3),
    ]


async def test_more_hours_are_one_that_stands_by_for_each_at_work_at_the_price_of_the_newest():
    central = Central("ready", "ready", becomes=["standby", "standby"])
    assert await Deployments(central).extend("digits", 2) == ["job-2", "job-3"]
    (job, other) = central.placed
    assert job == other and (job.amount_base_units, job.serve.seconds) == (10, 7200)
    assert (job.serve.standby, job.serve.least, job.serve.most) == (True, 2, 2)


async def test_hours_beyond_what_an_escrow_lasts_are_refused():
    with pytest.raises(SpecError, match=r"with those 700 h digits-.* would have 29\.2"):
        await Deployments(Central("ready")).extend("digits", 700)


async def test_what_scales_by_itself_is_not_scaled_by_hand():
    central = Central("ready", "standby")
    central.newest = replace(JOB, serve=replace(SPEC, least=1, most=2))
    with pytest.raises(ApiError, match="has 1 to 2 replicas, as it needs them"):
        await Deployments(central).scale("digits", 3)


async def test_those_that_stand_by_end_first_so_that_none_is_called_for_one_that_ends():
    central = Central("ready", "standby", "ready", "standby")
    await Deployments(central).undeploy("digits")
    assert central.said == ["-job-3", "-job-1", "-job-2", "-job-0"]


@pytest.mark.parametrize(
    ("nodes", "limit", "price", "replicas", "said"),
    [
        (0, 0, 5, 1, "no node that is here can serve it"),
        (2, 3, 5, 1, "this one may cost"),
        (2, 9, 5, 3, "1 of 3 replicas wait for another"),
        (2, 9, 5, 2, ""),
        (2, 0, 5, 3, ""),
    ],
)
async def test_why_replicas_will_wait_is_said_before_they_do(nodes, limit, price, replicas, said):
    quote = replace(await Central().quote(None), eligible_nodes=nodes, unproven_limit_base_units=limit)
    sight = io.StringIO()
    _tell_room(quote, replace(JOB, amount_base_units=price), replicas, PlainScreen(sight))
    assert said in sight.getvalue() and bool(said) == bool(sight.getvalue())


@pytest.mark.parametrize(
    ("replicas", "said"),
    [
        (3, "comes to 3 replicas: 1 more; see: cyx deployments digits"),
        (1, "comes to 1 replica: 1 fewer; see: cyx deployments digits"),
        (0, "comes to 0 replicas: 2 fewer; and so to its end"),
    ],
)
async def test_who_scales_is_told_what_comes_of_it(replicas, said, monkeypatch):
    @contextlib.asynccontextmanager
    async def connected(args):
        yield SimpleNamespace(deployments=Deployments(Central("ready", "ready", becomes=["ready"])))

    monkeypatch.setattr(commands, "connected", connected)
    out = io.StringIO()
    args = argparse.Namespace(deployment="digits", replicas=replicas)
    assert await commands.scale(args, PlainScreen(out)) == 0
    assert out.getvalue() == f"digits {said}\n"
