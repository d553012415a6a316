-- One row for each report that was asked for.

CREATE TABLE report_logs (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    report_id     uuid        NOT NULL CONSTRAINT report_logs_report_id_key UNIQUE,
    report_name   text        NOT NULL,
    format        text        NOT NULL,
    status        text        NOT NULL CHECK (status IN
                  ('requested', 'generating', 'ready', 'failed')),
    record_count  bigint,
    file_path     text,
    size_bytes    bigint,
    sha256        text,
    error_message text,
    requested_at  timestamptz NOT NULL,
    generated_at  timestamptz
);

-- The list, newest first.
CREATE INDEX report_logs_requested_at_idx ON report_logs (requested_at DESC, id DESC);
