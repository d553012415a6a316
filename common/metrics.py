"""All metrics; docs/observability.md says what to do about each.

Labels never hold an id, an address or anything a person typed.
"""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

HTTP_REQUESTS = Counter(
    "userstream_http_requests_total", "Requests answered.", ["method", "route", "status"]
)
HTTP_SECONDS = Histogram(
    "userstream_http_request_seconds",
    "Time from request to answer.",
    ["method", "route"],
    buckets=_LATENCY_BUCKETS,
)
HTTP_CONNECTIONS = Gauge("userstream_http_connections", "Open connections of clients.")
HTTP_CONNECTIONS_DROPPED = Counter(
    "userstream_http_connections_dropped_total",
    "Connections that were closed because there was room for no more.",
)
DELIVERIES = Counter(
    "userstream_deliveries_total",
    "Deliveries by what became of them: see ``common.messaging.dispatcher``; or channel lost.",
    ["queue", "outcome"],
)
DELIVERY_SECONDS = Histogram(
    "userstream_delivery_seconds",
    "Time from delivery to ack, retry or dead letter.",
    ["queue"],
    buckets=_LATENCY_BUCKETS,
)
DEAD_LETTERS = Counter(
    "userstream_dead_letters_total", "Messages dead-lettered, by reason.", ["queue", "code"]
)
QUARANTINED = Counter(
    "userstream_quarantined_total",
    "Messages handled with no other in flight, because they were redelivered several times.",
    ["queue"],
)
IN_FLIGHT = Gauge("userstream_deliveries_in_flight", "Deliveries taken and not settled.", ["queue"])
CONSUMER_PAUSED = Gauge(
    "userstream_consumer_paused",
    "1 while an outage of another service pauses the consumer.",
    ["queue"],
)
CONSUMER_PAUSES = Counter(
    "userstream_consumer_pauses_total",
    "Outages of other services that paused the consumer.",
    ["queue", "code"],
)
PUBLISHES = Counter(
    "userstream_publishes_total",
    "Publishes by what the broker said: confirmed, returned, unavailable.",
    ["exchange", "outcome"],
)
PUBLISH_SECONDS = Histogram(
    "userstream_publish_seconds",
    "Time from publish to the broker's confirm.",
    ["exchange"],
    buckets=_LATENCY_BUCKETS,
)
BROKER_CONNECTED = Gauge(
    "userstream_broker_connected", "1 while the AMQP connection is usable.", ["purpose"]
)
CANARY_SECONDS = Histogram(
    "userstream_canary_seconds",
    "Time from the form's endpoint to the journey that says mailed, of canaries.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
CANARY_FAILING = Gauge("userstream_canary_failing", "1 while the last canary is late or failed.")
BATCH_SIZE = Histogram(
    "userstream_batch_size",
    "Calls that travelled together in one bulk request.",
    ["call"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
EMAILS = Counter(
    "userstream_emails_total",
    "Attempts by what became of them: sent, failed, deferred, unsure; skipped if sent before.",
    ["template", "status"],
)
RESENDS = Counter("userstream_resends_total", "Mails resent by hand.", ["status_before"])
BOUNCES = Counter(
    "userstream_bounces_total",
    "Reports posted: failed, delayed, delivered, relayed, expanded; repeated, unknown.",
    ["outcome"],
)
SMTP_SECONDS = Histogram(
    "userstream_smtp_seconds",
    "Time from MAIL to the last reply, waiting for a free connection included.",
    ["status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
SMTP_CONNECTIONS = Gauge("userstream_smtp_connections", "Open connections to the mail server.")
REPORTS = Counter("userstream_reports_total", "Reports by outcome: ready, failed.", ["outcome"])
REPORT_RECORDS = Counter("userstream_report_records_total", "Records written to reports.")
REPORT_SECONDS = Histogram(
    "userstream_report_seconds",
    "Time to write one report.",
    buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600),
)
LEDGER_LOST = Gauge(
    "userstream_ledger_lost", "Accepted registrations that are in no queue and not stored."
)
LEDGER_REGISTRATIONS = Gauge(
    "userstream_ledger_registrations",
    "Registrations by what the ledger last found of them.",
    ["state"],
)
LEDGER_TRUNCATED = Gauge(
    "userstream_ledger_truncated", "Messages that the stream forgot before the ledger read them."
)
LEDGER_INCIDENTS = Gauge(
    "userstream_ledger_incidents",
    "What the ledger cannot account for and no person has acknowledged.",
)
LEDGER_AGE = Gauge(
    "userstream_ledger_age_seconds", "Time since the ledger was last reconciled here."
)
CIRCUIT_STATE = Gauge(
    "userstream_circuit_state",
    "0 while requests are made, 1 while a service is asked whether it is back, 2 while it is away.",
    ["upstream"],
)
DATABASE_CONNECTED = Gauge("userstream_database_connected", "1 while PostgreSQL answers.")
DATABASE_RACES = Counter(
    "userstream_database_races_total",
    "Transactions done again because another one was first.",
)
