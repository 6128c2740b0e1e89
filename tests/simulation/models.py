"""What the checks of the simulation know of one job, from its events alone."""

from msgspec import Struct

from cyxcore.spec import TrainingSummary
from cyxnet import messages as m
from tests.simulation.served import Served
from tests.simulation.tried import Tried


class Lease(Struct):
    attempt: int
    node_id: str
    session: str
    by: str
    since_s: float
    live: bool = True
    checkpoint: int = 0  # steps
    resume: m.Checkpoint | None = None
    stored: list[m.Checkpoint] = []


class CheckModel(Struct):
    """A check that is under way."""

    segment: m.SignedSegment
    lease: Lease | None = None
    findings: list[m.Finding] = []
    impossible: int = 0  # checkers that said that nobody can have trained it


class JobModel(Struct):
    """What is known of one job from its events alone."""

    name: str
    terms: m.EscrowTerms
    steps: int
    deposit: m.SignedTransaction
    leases: list[Lease]
    funded: bool = False
    ended: bool = False
    settled: bool = False
    completed: bool = False
    cancelled: bool = False
    near: bool = False  # its escrow's deadline
    states: list[tuple[int, m.Checkpoint]] = []  # attempts and what they stored, the last two of each
    settlements: list[m.SignedTransaction] = []
    ran_out: list[str] = []  # ids of nodes that had too little memory for it
    requests: list[str] = []  # that its owner made
    denied: list[str] = []  # those that the owner was told no about
    served: Served | None = None  # of a job that serves
    serve: m.ServeSpec | None = None
    worth: int = 0
    ready_s: float = 0.0  # since when, by the true clock, its replica is to answer
    answers_s: float = 0.0  # the same, without halts that were over before every central looked
    halts: bool = False
    standby: bool = False
    halts_s: float = 0.0  # since when it is paused, or stands by, or its deadline is near, or it is paid for
    told_s: float = 0.0  # since when that is so, or was so before, in the lease there is
    tried: Tried | None = None  # of a job that trains
    priority: int = 0
    request: m.JobRequest | None = None
    false: list[str] = []  # SHA-256 of states that are not what their steps make
    check: CheckModel | None = None
    checks: int = 0  # leases of checks
    rejected: list[str] = []  # ids of nodes whose work on it was found false
    awaiting: bool = False  # it comes after jobs that are not all completed
    orphaned: str = ""  # the job that came to nothing, for which this one is cancelled
    model: str = ""  # SHA-256 of what was delivered
    passed_over: list[str] = []  # jobs with whose model it could have begun, had they come to anything
    summary: TrainingSummary | None = None

    @property
    def checkpoint(self) -> m.Checkpoint | None:
        return self.states[-1][1] if self.states else None

    @property
    def lease(self) -> Lease | None:
        return self.leases[-1] if self.leases and self.leases[-1].live else None
