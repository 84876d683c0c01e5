"""The metrics of a server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ServingMetrics:
    """Counters in a separate registry, so that several servers can run in one process."""

    def __init__(self) -> None:
        """Set all counters to zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "grace_requests", "Requests for embeddings by HTTP status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "grace_request_seconds",
            "From a request's arrival to its answer, by where the answer came from.",
            ["source"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=self.registry,
        )
        self.texts = Counter(
            "grace_texts", "Texts embedded, by where the answer came from.", ["source"], registry=self.registry
        )
        self.batch_texts = Histogram(
            "grace_batch_texts",
            "Texts of a batch given to the model.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self.tokens = Counter("grace_tokens", "Tokens read and written.", ["kind"], registry=self.registry)
        self.waiting = Gauge("grace_waiting_texts", "Texts that wait for a batch.", registry=self.registry)
