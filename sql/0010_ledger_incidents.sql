-- What the ledger can not account for, until a person has taken note of it.

CREATE TABLE ledger_incidents (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream          text        NOT NULL CHECK (char_length(stream) BETWEEN 1 AND 255),

    -- replaced: another stream stands under the name. truncated: the stream dropped messages
    -- before they were read. restored: the database is older than what was read before.
    -- vanished: rows of registrations are no longer there.
    kind            text        NOT NULL CHECK (kind IN
                    ('replaced', 'truncated', 'restored', 'vanished')),
    noticed_at      timestamptz NOT NULL DEFAULT now(),

    -- When the last message before was read; what was accepted after that was never seen.
    last_read_at    timestamptz,

    -- The ledger as it stood then.
    accepted_before bigint      NOT NULL,
    stored_by_then  bigint      NOT NULL,

    -- replaced: accepted and not stored then. truncated: messages. vanished: rows. restored: none,
    -- since the stream is read again.
    not_provable    bigint      NOT NULL,

    -- restored: this stream had been read up to here.
    known_up_to     bigint,

    acknowledged_at timestamptz,
    acknowledged_by text        NOT NULL DEFAULT '' CHECK (char_length(acknowledged_by) <= 100),
    reason          text        NOT NULL DEFAULT '' CHECK (char_length(reason) <= 500)
);

CREATE INDEX ledger_incidents_open_idx ON ledger_incidents (stream, id)
    WHERE acknowledged_at IS NULL;

ALTER TABLE ledger_entries
    -- By the database's clock: a publisher may say whatever it likes in accepted_at.
    ADD COLUMN read_at     timestamptz NOT NULL DEFAULT now(),

    -- Stored once, and its row in registrations has gone since.
    ADD COLUMN vanished_at timestamptz;

CREATE INDEX ledger_entries_vanished_idx ON ledger_entries (registration_id)
    WHERE vanished_at IS NOT NULL;

-- Those that are stored are looked at in turns, too: is their row still there?
ALTER TABLE ledger_positions ADD COLUMN verified_to uuid;
