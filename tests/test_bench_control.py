"""What the benchmark of the control plane concludes from what it measured."""

import msgspec
import pytest

from benchmarks.control.report import FULL, Kills, Progress, Rate, Report, plan_faults, tally
from benchmarks.control.tables import Machine, Results, markdown, median_rates, percentile, promises

VICTIMS = ["worker", "broker", "scheduler"]


def results(rates=(), kills=()):
    machine = Machine(
        name="a processor", cores=2, memory_gb=8, system="Linux", python="3.11", load_before=0, load_after=1,
        fdatasync_ms=0.2,
    )  # fmt: skip
    return Results(
        date="2026-01-01", command="run", commit="abc", seed=1, scale=FULL, machine=machine, packages={},
        rates=list(rates), starts=[], kills=list(kills), skipped={},
    )  # fmt: skip


def rate(system, per_s, durable=True, clients=1):
    return Rate(system=system, per_s=per_s, samples=1, durable=durable, clients=clients, means="m")


def kills(**counts):
    counts = {"lost": 0, "stuck": 0, "repeated": 0, "extra": 0} | counts
    return Kills(system="Cyx", unit="jobs", acknowledged=9, faults={"broker": 1}, last_effect_s=1, means="m", **counts)


def test_the_same_seed_plans_the_same_faults():
    assert plan_faults(VICTIMS, 20, 1.0, seed=7) == plan_faults(VICTIMS, 20, 1.0, seed=7)
    assert plan_faults(VICTIMS, 20, 1.0, seed=7) != plan_faults(VICTIMS, 20, 1.0, seed=8)


def test_every_kind_of_victim_is_struck_equally_often():
    victims = [fault.victim for fault in plan_faults(VICTIMS, 9, 1.0, seed=1)]
    assert {victim: victims.count(victim) for victim in VICTIMS} == dict.fromkeys(VICTIMS, 3)


def test_a_tally_tells_missing_from_repeated():
    found = tally(["1", "2", "3"], ["1", "3", "3", "3"])
    assert (found.missing, found.repeated, found.extra) == (["2"], 1, 2)


def test_a_percentile_is_a_value_that_was_measured():
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 99), percentile(values, 50), percentile([3.0], 99)) == (99.0, 50.0, 3.0)


def test_rounds_are_joined_by_their_median():
    assert median_rates([rate("a", 1), rate("a", 9), rate("a", 2)]) == {"a": 2}


def test_the_promise_of_speed_compares_with_the_best_durable_celery():
    rates = [rate("Cyx, job.submit, 256 in flight", 6000), rate("Celery, durable, 1 thread", 1000)]
    met = promises(results(rates))
    missed = promises(results([*rates, rate("Celery, durable, 8 threads", 3000)]))
    assert met[1].endswith("6.00 ×, met") and missed[1].endswith("2.00 ×, NOT met")


def test_several_clients_are_compared_with_as_many():
    rates = [rate("Cyx, job.submit, 480 in flight", 6000), rate("Celery, durable, 8 threads", 2000)]
    more = [rate("Cyx, job.submit, 2 client processes", 8000, clients=2), rate("Celery, durable, 2", 4000, clients=2)]
    said = promises(results([*rates, *more]))
    assert said[1].endswith("3.00 ×, met") and said[2].endswith("2.00 ×")


@pytest.mark.parametrize("count", ["lost", "stuck", "repeated"])
def test_the_promise_of_no_loss_falls_with_a_single_job(count):
    [kept] = promises(results(kills=[kills()]))
    [broken] = promises(results(kills=[kills(**{count: 1})]))
    assert kept.endswith(", met") and broken.endswith("NOT met")


def test_the_page_names_what_was_not_measured():
    found = results([rate("Cyx, job.submit", 1)])
    found.skipped = {"ray": "ray[default] not installed"}
    assert "not measured: ray: ray[default] not installed" in markdown(found)


def test_a_page_warns_of_a_busy_machine():
    quiet, busy = results(), results()
    busy.machine = msgspec.structs.replace(quiet.machine, load_before=9.0)
    assert "the machine was busy" in markdown(busy)
    assert "the machine was busy" not in markdown(quiet)


def test_a_report_keeps_its_kind_on_its_way():
    for said in (Progress("x"), rate("a", 1.5), kills()):
        assert msgspec.json.decode(msgspec.json.encode(said), type=Report) == said
