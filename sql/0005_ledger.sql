-- The ledger: what the broker has confirmed, beside what became of it.
--
-- Written from the stream of registrations, never by what stores them: two independent
-- accounts of the same ids, so that each finds the other's omissions.

-- How far a stream was read, and the totals. Whoever writes to the ledger locks this row.
CREATE TABLE ledger_positions (
    stream      text        PRIMARY KEY CHECK (char_length(stream) BETWEEN 1 AND 255),

    -- The offset to read next, and the id of the message before it: where another message
    -- stands there, it is another stream of the same name.
    next_offset bigint      NOT NULL DEFAULT 0,
    last_id     uuid,
    read_at     timestamptz,

    -- Distinct ids read; how often an id came again; how many messages the stream forgot
    -- before they were read; how often it was begun anew.
    accepted    bigint      NOT NULL DEFAULT 0,
    repeated    bigint      NOT NULL DEFAULT 0,
    unread      bigint      NOT NULL DEFAULT 0,
    restarts    bigint      NOT NULL DEFAULT 0,

    -- Of those accepted: outcomes, and mails that are done with.
    stored      bigint      NOT NULL DEFAULT 0,
    duplicates  bigint      NOT NULL DEFAULT 0,
    mailed      bigint      NOT NULL DEFAULT 0,
    suppressed  bigint      NOT NULL DEFAULT 0,

    -- When the youngest that is stored was accepted: the work queue has come so far.
    stored_up_to timestamptz,

    -- Those that are not settled are looked at in turns; where the last one ended.
    settled_to  uuid
);

-- Each accepted registration once, kept as long as the registration itself: for ever.
CREATE TABLE ledger_entries (
    registration_id uuid        PRIMARY KEY,
    accepted_at     timestamptz NOT NULL,
    stream_offset   bigint      NOT NULL,

    -- As found when last looked; no outcome: not stored.
    outcome         text        CHECK (outcome IN ('stored', 'duplicate')),
    mail            text,

    -- Error code of the dead letter that a person discarded.
    rejected        text,

    -- Not looked at again: stored, and its mail handed over or not needed.
    settled         boolean     NOT NULL
);

CREATE INDEX ledger_entries_missing_idx ON ledger_entries (accepted_at, registration_id)
    WHERE outcome IS NULL AND rejected IS NULL;
CREATE INDEX ledger_entries_rejected_idx ON ledger_entries (rejected)
    WHERE outcome IS NULL AND rejected IS NOT NULL;
CREATE INDEX ledger_entries_unsettled_idx ON ledger_entries (registration_id)
    WHERE NOT settled;
