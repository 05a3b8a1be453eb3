"""What Prometheus reads: queue, batches, stages, answers, memory."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import generate_latest

from latentrt.serve.messages import Stepped
from latentrt.serve.ticket import Ticket

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The metrics of one server, in a registry of their own. docs/serving.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue = Gauge("latentrt_queue_length", "Requests that wait.", registry=self.registry)
        self.running = Gauge("latentrt_requests_running", "Requests being drawn.", registry=self.registry)
        self.lanes = Gauge("latentrt_lanes", "Lanes with requests.", registry=self.registry)
        self.batch = Histogram(
            "latentrt_batch_pictures", "Pictures in the batch of a step.", buckets=PICTURES, registry=self.registry
        )
        self.step = Histogram(
            "latentrt_step_seconds",
            "Seconds of a step; its count is the number of steps.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.joined = Counter("latentrt_joins", "Requests that came into a batch.", registry=self.registry)
        self.left = Counter("latentrt_leaves", "Requests that left a batch.", registry=self.registry)
        self.stages = Counter("latentrt_stage_seconds", "Seconds by stage.", ["stage"], registry=self.registry)
        self.wait = Histogram(
            "latentrt_wait_seconds", "Seconds until a request takes part.", buckets=SECONDS, registry=self.registry
        )
        self.total = Histogram(
            "latentrt_request_seconds",
            "Seconds from a request to its pictures.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.requests = Counter(
            "latentrt_requests", "Requests by how they ended.", ["model", "state"], registry=self.registry
        )
        self.failures = Counter("latentrt_failures", "Failed requests by kind.", ["kind"], registry=self.registry)
        self.rejected = Counter("latentrt_rejected", "Requests not taken in.", ["reason"], registry=self.registry)
        self.deaths = Counter("latentrt_worker_deaths", "Workers that ended unasked.", registry=self.registry)
        self.memory = Gauge("latentrt_worker_memory_bytes", "Resident memory of the worker.", registry=self.registry)

    def stepped(self, message: Stepped) -> None:
        """Count a step."""
        self.lanes.set(message.lanes)
        self.batch.observe(message.pictures)
        self.step.observe(message.seconds)
        self.joined.inc(message.joined)
        self.left.inc(message.left)

    def ended(self, ticket: Ticket) -> None:
        """Count a request that has its answer."""
        self.requests.labels(ticket.submit.model, ticket.state).inc()
        if ticket.failed is not None:
            self.failures.labels(ticket.failed.kind).inc()
        if ticket.finished is not None:
            self.total.observe((ticket.ended or ticket.came) - ticket.came)
            for stage, seconds in ticket.finished.seconds.items():
                self.stages.labels(stage).inc(seconds)

    def text(self) -> bytes:
        """All metrics in OpenMetrics' text format."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text
