-- What the broker may have although it was answered with 503: nobody was promised it.

-- Each of these publications was answered with 503. With the span, which each request has for
-- itself, the id names one message, so a repetition that was answered with 202 is not meant.
CREATE TABLE unpromised_publications (
    registration_id uuid        NOT NULL,
    span            bytea       NOT NULL CHECK (octet_length(span) = 8),
    noted_at        timestamptz NOT NULL DEFAULT now(),

    PRIMARY KEY (registration_id, span)
);

-- Old ones are deleted.
CREATE INDEX unpromised_publications_noted_at_idx ON unpromised_publications (noted_at);

ALTER TABLE ledger_entries
    -- The span of each message with this id, while it is not stored; none where not all were
    -- kept. Worth something only where spans_offset is stream_offset: a release that knows no
    -- spans moves that one alone.
    ADD COLUMN spans        bytea[],
    ADD COLUMN spans_offset bigint,

    -- Every one of these messages was answered with 503.
    ADD COLUMN unpromised   boolean NOT NULL DEFAULT false;

-- Those that are unpromised are left out of what is looked through in each turn: however many they
-- are, they keep nobody else waiting. They have turns of their own.
ALTER TABLE ledger_positions ADD COLUMN unpromised_to uuid;

DROP INDEX ledger_entries_missing_idx;
CREATE INDEX ledger_entries_missing_idx ON ledger_entries (accepted_at, registration_id)
    WHERE outcome IS NULL AND rejected IS NULL
          AND NOT (unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset);
DROP INDEX ledger_entries_unsettled_idx;
CREATE INDEX ledger_entries_unsettled_idx ON ledger_entries (registration_id)
    WHERE NOT settled
          AND NOT (unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset);

CREATE INDEX ledger_entries_unpromised_idx ON ledger_entries (accepted_at, registration_id)
    WHERE (unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset);
CREATE INDEX ledger_entries_unpromised_id_idx ON ledger_entries (registration_id)
    WHERE (unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset);
