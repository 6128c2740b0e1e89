"""The architecture, as a test. ORDER, read like a book, is the whole dependency graph."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cyxcore", "cyxnet", "cyxnode", "cyxcentral")
TOP_LEVEL = {*PACKAGES, "benchmarks", "tests", "examples", "docs", "decisions"}

# A module may import only modules listed before it, inside functions too. What stands under `if TYPE_CHECKING` is for
# readers. `cyxcore` itself is a lazy door to all of its modules: who has come that far may use it.
VOCABULARY = """
cyxcore.errors cyxcore.paths cyxcore.columns cyxcore.wording cyxcore.plotting cyxcore.transforms cyxcore.spec
cyxcore.dtype
cyxcore.attrs cyxcore.infer cyxcore.infer2d cyxcore.infermatrix cyxcore.ops
cyxcore.graph
cyxcore.torchpaths cyxcore.torchwords cyxcore.casting cyxcore.values cyxcore.inplace cyxcore.indexing cyxcore.hosted
cyxcore.functional.basic cyxcore.functional.activations cyxcore.functional.dropouts cyxcore.functional.losses
cyxcore.functional.embeddings
cyxcore.functional.convolutions cyxcore.functional.pooling cyxcore.functional.adaptive
cyxcore.functional.resampling cyxcore.functional.norms cyxcore.functional.recurrent cyxcore.functional.attention
cyxcore.functional cyxcore.elementwise cyxcore.manipulation cyxcore.statistics
cyxcore.searching cyxcore.extras cyxcore.einsum cyxcore.linalg cyxcore.matrixgradients
cyxcore.torchnames cyxcore.special cyxcore.torchrarer cyxcore.torchstatistics cyxcore.solving
cyxcore.torchsymbols cyxcore.symbols cyxcore.options
cyxcore.layertable cyxcore.layers cyxcore.nodelayers cyxcore.nodekinds cyxcore.graphfile
cyxcore.templates cyxcore.wiring cyxcore.recipe cyxcore.patterns
""".split()
READING_DATA = """
cyxcore.safetensors cyxcore.data.kept cyxcore.data.checks cyxcore.data.formats cyxcore.data.labels
cyxcore.data.npy cyxcore.data.arrays cyxcore.data.split cyxcore.data.sources
cyxcore.data.tables cyxcore.data.augment cyxcore.data.loading cyxcore.data.images cyxcore.data
""".split()
ORDER = [
    *VOCABULARY,
    *READING_DATA,
    *"""
cyxcore.cores cyxcore.forks cyxcore.kernels.philox cyxcore.kernels.bfloat16 cyxcore.dlpack
cyxcore.kernels.lapack cyxcore.kernels.standard
cyxcore.kernels.reference cyxcore.kernels
cyxcore.kernels.gpu cyxcore.kernels.gpu.helpers cyxcore.kernels.gpu.chains cyxcore.kernels.gpu.compiling
cyxcore.kernels.gpu.fixed cyxcore.kernels.gpu.fusion cyxcore.kernels.gpu.table cyxcore.kernels.gpu.cublas
cyxcore.kernels.gpu.cublaslt cyxcore.kernels.gpu.cuda
cyxcore.metrics.base cyxcore.metrics.classification cyxcore.metrics.regression cyxcore.metrics
cyxcore.device cyxcore.precision cyxcore.held cyxcore.dispatch cyxcore.inspection cyxcore.drawing cyxcore.variates
cyxcore.gradients cyxcore.memory
cyxcore.passes cyxcore.onepass cyxcore.recompute cyxcore.accumulating cyxcore.bands cyxcore.rowblocks
cyxcore.order cyxcore.placement
cyxcore.plan cyxcore.retracing
cyxcore.tape cyxcore.keys cyxcore.conversion
cyxcore.torchtensors cyxcore.exports
cyxcore.eager cyxcore.rownorms cyxcore.composed cyxcore.recurrences cyxcore.sequences cyxcore.becoming
cyxcore.creation cyxcore.fft cyxcore.signals
cyxcore.saving cyxcore.random cyxcore.torchfunctions
cyxcore.data.datasets cyxcore.data.samplers cyxcore.data.collate
cyxcore.transforms.draws cyxcore.transforms.colour cyxcore.transforms.geometry cyxcore.transforms.policies
cyxcore.transforms.running cyxcore.data.loader cyxcore.data.tokenizers cyxcore.data.windows
cyxcore.data.streams cyxcore.data.arrayfiles cyxcore.data.imagefiles cyxcore.data.pickles cyxcore.data.classics
cyxcore.autograd cyxcore.distributions.base cyxcore.distributions.continuous cyxcore.distributions.discrete
cyxcore.distributions.joint cyxcore.distributions.transformed cyxcore.distributions.divergences cyxcore.distributions
cyxcore.userops cyxcore.nn.utils.rnn cyxcore.nn.utils cyxcore.nn.functional
cyxcore.nn.hooks cyxcore.nn.module cyxcore.nn.containers cyxcore.nn.utils.parametrize
cyxcore.nn.utils.parametrizations cyxcore.nn.activations cyxcore.nn.dropouts cyxcore.nn.embeddings
cyxcore.nn.layers cyxcore.nn.norms cyxcore.nn.pooling cyxcore.nn.losses cyxcore.nn.recurrent cyxcore.nn.spatial
cyxcore.nn.lazy cyxcore.nn.attention cyxcore.nn.init cyxcore.nn
cyxcore.func cyxcore.derivatives cyxcore.cuda cyxcore.backends cyxcore.testing
cyxcore.preprocessing
cyxcore.updates cyxcore.schedules cyxcore.optimizerhooks cyxcore.torchstates cyxcore.optimizer cyxcore.lbfgs
cyxcore.muon cyxcore.optim cyxcore.amp
cyxcore.scheduler cyxcore.cycles cyxcore.lr_scheduler
cyxcore.swa_utils cyxcore.objectives cyxcore.tracing cyxcore.overview cyxcore.surroundings
cyxcore.arguments cyxcore.steps cyxcore.compiled cyxcore.evaluation cyxcore.cyxmodel cyxcore.checkpoint
cyxcore.history
cyxcore.callbacks cyxcore.progress cyxcore.batches cyxcore.learning cyxcore.augmenting cyxcore.graphlearner
cyxcore.modulelearner cyxcore.training cyxcore.lrfinder cyxcore.profiling cyxcore.utils
cyxcore.onnx.proto cyxcore.onnx.tensors cyxcore.onnx.table cyxcore.onnx.attributes cyxcore.onnx.elementwise
cyxcore.onnx.movement cyxcore.onnx.reductions cyxcore.onnx.products cyxcore.onnx.nn cyxcore.onnx.quantised
cyxcore.onnx.recurrent cyxcore.onnx.control cyxcore.onnx.sequences cyxcore.onnx.signals cyxcore.onnx.vision
cyxcore.onnx.importing
cyxcore.onnx.exporting cyxcore.onnx
cyxcore.gguf.blocks cyxcore.gguf.file cyxcore.gguf.rewriting cyxcore.gguf
cyxcore.oldmodels cyxcore.model cyxcore.modelinfo cyxcore.quantization
cyxcore.llm cyxcore.llm.requests
cyxcore.llm.architecture cyxcore.llm.weights cyxcore.llm.llama
cyxcore.llm.tokenizer cyxcore.llm.chat cyxcore.llm.sampling cyxcore.llm.pages cyxcore.llm.engine
cyxcore.llm.languagemodel cyxcore.llm.decoder
cyxcore

cyxnet.messages.fields cyxnet.messages.jobs cyxnet.messages.asking cyxnet.messages.deployments
cyxnet.messages.artifacts cyxnet.messages.money cyxnet.messages.access cyxnet.messages.commands
cyxnet.messages.reports cyxnet.messages.standing cyxnet.messages.events cyxnet.messages
cyxnet.subjects cyxnet.codec cyxnet.sealing cyxnet.backup cyxnet.identity cyxnet.commands
cyxnet.envelope cyxnet.credentials cyxnet.wallet cyxnet.instructions cyxnet.escrow cyxnet.refund
cyxnet.amounts cyxnet.moving cyxnet.shapes
cyxnet.config cyxnet.tls cyxnet.httpclient cyxnet.solana cyxnet.lifetime cyxnet.ratelimit cyxnet.outcomes
cyxnet.connection
cyxnet.service cyxnet.mux cyxnet.inference cyxnet.httpserver cyxnet.openapi cyxnet.openai
cyxnet.asking
cyxnet.follower cyxnet.hearing cyxnet.streams cyxnet.bus cyxnet.artifacts
cyxnet.broker cyxnet.brokers cyxnet.watchdog cyxnet.parts
cyxnet.local
cyxnet.jobtoml cyxnet.jobgraph cyxnet.fetch cyxnet.jobfile cyxnet.follow cyxnet.outbox cyxnet.questions
cyxnet.caller cyxnet.deployments cyxnet.gateway cyxnet.quotes cyxnet.submitting cyxnet.workflow cyxnet.client
cyxnet.blocking cyxnet
cyxnet.display cyxnet.serveoptions cyxnet.cli.values cyxnet.cli.exits cyxnet.cli.options
cyxnet.cli.screen cyxnet.cli.running cyxnet.cli.models cyxnet.cli.files cyxnet.cli.jobs cyxnet.cli.submitting
cyxnet.cli.curves cyxnet.cli.deployments cyxnet.cli.gateway cyxnet.cli.network cyxnet.cli.keys cyxnet.cli.access
cyxnet.cli.money cyxnet.cli.train cyxnet.cli.workflows
cyxnet.chatting cyxnet.cli.chat cyxnet.cli.serving cyxnet.cli.graphs cyxnet.cli
cyxnet.__main__

cyxnode.errors cyxnode.devicepool cyxnode.events cyxnode.outbox cyxnode.state cyxnode.pipe cyxnode.exchange
cyxnode.sandbox cyxnode.saving cyxnode.train
cyxnode.signing cyxnode.home cyxnode.cache cyxnode.hardware cyxnode.telemetry cyxnode.process cyxnode.uploads
cyxnode.segments cyxnode.chain cyxnode.answering cyxnode.replicas cyxnode.runs cyxnode.verify cyxnode.checking
cyxnode.agent cyxnode.why
cyxnode cyxnode.__main__
cyxnode.serving.batching cyxnode.serving.predictor cyxnode.serving.batcher cyxnode.serving.bodies
cyxnode.serving.figures cyxnode.serving.gate cyxnode.serving.asgi cyxnode.serving.openai cyxnode.serving.routes
cyxnode.serving.openapi cyxnode.serving.tensors cyxnode.serving.language cyxnode.serving.gguf cyxnode.serving.app
cyxnode.serving.loading cyxnode.serving.loop cyxnode.serving cyxnode.serving.__main__ cyxnode.replica

cyxcentral.machine
cyxcentral.money cyxcentral.jobs cyxcentral.earnings cyxcentral.jobrules cyxcentral.jobfold cyxcentral.payouts
cyxcentral.dependencies cyxcentral.nodes cyxcentral.clients cyxcentral.scaling cyxcentral.pings
cyxcentral.schedule cyxcentral.tree cyxcentral.line cyxcentral.room
cyxcentral.listing cyxcentral.roster cyxcentral.matching cyxcentral.world cyxcentral.snapshot
cyxcentral.intake cyxcentral.prices cyxcentral.segments cyxcentral.checking cyxcentral.views
cyxcentral.cache cyxcentral.columns cyxcentral.ledger cyxcentral.projection cyxcentral.recent cyxcentral.blobs
cyxcentral.groupcommit cyxcentral.records
cyxcentral.eventlog cyxcentral.fetches cyxcentral.readahead cyxcentral.sweeper cyxcentral.reports cyxcentral.telling
cyxcentral.dispatch cyxcentral.runreports
cyxcentral.landings
cyxcentral.payments cyxcentral.telemetry cyxcentral.verifier cyxcentral.admission cyxcentral.crowd cyxcentral.door
cyxcentral.audit cyxcentral.reconciliation
cyxcentral.signer cyxcentral.keys cyxcentral.operators cyxcentral.access cyxcentral.uploads cyxcentral.api
cyxcentral.central
cyxcentral.http cyxcentral.http.routes cyxcentral.http.openapi cyxcentral.http.clock cyxcentral.http.tokens
cyxcentral.http.gate cyxcentral.http.figures cyxcentral.http.events cyxcentral.http.app
cyxcentral.program.link cyxcentral.program cyxcentral.program.__main__
cyxcentral.localvm cyxcentral.localrpc cyxcentral.localchain cyxcentral cyxcentral.__main__
""".split(),
]

# Each outside system has one door. DuckDB is two systems to us: a reader of tables and a database. solders is the
# vocabulary of transactions for who builds them, and the chain itself for who is one.
DOORS = {
    "nats": {"cyxnet.bus", "cyxnet.connection", "cyxnet.streams"},
    "duckdb": {"cyxcore.data.tables", "cyxcentral.ledger"},
    "redis": {"cyxcentral.cache"},
    "jwt": {"cyxcentral.http.tokens"},
    "starlette": {"cyxcentral.http.app", "cyxcentral.http.events"},
    "uvicorn": {"cyxnet.httpserver"},
    "prometheus_client": {"cyxcentral.http.figures", "cyxnode.serving.figures"},
    "solana": {"cyxnet.solana"},
    "solders": {"cyxnet.instructions", "cyxnet.escrow", "cyxnet.solana", "cyxcentral.localvm", "cyxcentral.localrpc"},
}

# What of cyxcore the network packages may know: what a model is and how data is read, not how a model is run. Tracing a
# user's module, and opening the file that came back, need the rest; they ask the lazy door for it by name.
KNOWN_TO_NETWORK = {*VOCABULARY, *READING_DATA}
THROUGH_THE_DOOR = {"cyxnet.jobfile", "cyxnet.cli.files", "cyxnet.cli.graphs", "cyxnet.cli.models", "cyxnet.blocking"}

# Pure modules decide. They get the time, the dice and the data as arguments.
PURE = {
    "cyxcore.ops",
    "cyxcore.graph",
    "cyxcore.gradients",
    "cyxcore.passes",
    "cyxcore.onepass",
    "cyxcore.recompute",
    "cyxcore.accumulating",
    "cyxcore.bands",
    "cyxcore.rowblocks",
    "cyxnode.chain",
    "cyxnode.events",
    "cyxnode.outbox",
    "cyxnode.signing",
    "cyxnode.state",
    "cyxnode.serving.batching",
    "cyxnode.serving.openapi",
    "cyxnode.serving.routes",
    "cyxnet.asking",
    "cyxnet.commands",
    "cyxnet.openapi",
    "cyxcentral.admission",
    "cyxcentral.clients",
    "cyxcentral.crowd",
    "cyxcentral.dependencies",
    "cyxcentral.http.openapi",
    "cyxcentral.http.routes",
    "cyxcentral.earnings",
    "cyxcentral.jobfold",
    "cyxcentral.jobrules",
    "cyxcentral.jobs",
    "cyxcentral.line",
    "cyxcentral.roster",
    "cyxcentral.matching",
    "cyxcentral.money",
    "cyxcentral.nodes",
    "cyxcentral.payouts",
    "cyxcentral.prices",
    "cyxcentral.program.link",
    "cyxcentral.room",
    "cyxcentral.scaling",
    "cyxcentral.schedule",
    "cyxcentral.segments",
    "cyxcentral.tree",
    "cyxcentral.uploads",
    "cyxcentral.views",
    "cyxcentral.recent",
    "cyxcentral.reports",
    "cyxcentral.world",
}
IMPURE = {"time", "random", "secrets", "asyncio", "socket", "threading", "uuid", "os", "subprocess"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from statements(child)


def imports(path: Path) -> Iterator[str]:
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full name, not a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def complaints(name: str) -> Iterator[str]:
    if name not in ORDER:
        yield f"{name} is not in ORDER: say where it belongs"
        return
    before, package = ORDER[: ORDER.index(name)], name.split(".")[0]
    for target in imports(MODULES[name]):
        root = target.split(".")[0]
        if target in MODULES and target != name and target not in before:
            yield f"{name} imports {target}, which comes later in ORDER"
        if root == "cyxcore" and package in ("cyxnet", "cyxcentral") and target not in KNOWN_TO_NETWORK:
            if not (target == "cyxcore" and name in THROUGH_THE_DOOR):
                yield f"{name} imports {target}: {package} knows what a model is, not how to run one"
        if {root, package} == {"cyxnode", "cyxcentral"}:
            yield f"{name} imports {target}: node and central meet only in cyxnet.messages"
        if package == "cyxcore" and root in PACKAGES and root != "cyxcore":
            yield f"{name} imports {target}: cyxcore knows no network"
        if package == "cyxnet" and root in ("cyxnode", "cyxcentral"):
            yield f"{name} imports {target}: cyxnet is below both"
        if root in DOORS and name not in DOORS[root]:
            yield f"{name} imports {root}: only {', '.join(sorted(DOORS[root]))} may"
        if root in IMPURE and name in PURE:
            yield f"{name} imports {root}: a pure module gets it as an argument"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_one_way(name: str) -> None:
    assert list(complaints(name)) == []


def test_the_order_names_only_modules_that_are_there() -> None:
    assert sorted(set(ORDER) - set(MODULES)) == []


def test_only_the_agreed_top_level_packages_exist() -> None:
    found = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert found <= TOP_LEVEL


@pytest.mark.parametrize("start", ["cyxnet.messages", "cyxcentral.central", "cyxnet.client", "cyxnet.cli"])
def test_the_network_side_starts_without_numpy_or_a_kernel(start: str) -> None:
    code = f"import sys, {start}; print([m for m in sys.modules if m == 'numpy' or m.startswith('cyxcore.kernels')])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_no_test_sleeps() -> None:
    """The simulation may: it sleeps in virtual time."""
    sleeping = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "tests").rglob("*.py")
        if path.parent.name != "simulation"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]
    assert sleeping == []


def test_each_decision_has_a_number_of_its_own() -> None:
    """Whoever writes one beside others takes the next free number when it is merged."""
    files = sorted((ROOT / "decisions").glob("[0-9]*.md"))
    said = [path.read_text().split(".")[0] for path in files]
    assert [path.name[:4] for path in files] == [f"{number:04}" for number in range(1, len(files) + 1)]
    assert said == [f"# {number}" for number in range(1, len(files) + 1)]
