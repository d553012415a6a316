-- Users, and the registrations they came from.
-- Core PostgreSQL 15 to 18, no extensions.

CREATE TABLE users (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    surname    text        NOT NULL CHECK (char_length(surname) BETWEEN 1 AND 100),
    email      text        NOT NULL CHECK (char_length(email) BETWEEN 1 AND 254),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),

    -- Counts edits by people; the ETag. What the pipeline notes below does not count.
    version    bigint      NOT NULL DEFAULT 1,

    -- The one message that may tell the owner of the address that somebody registered it
    -- again, and when it was last allowed to: at most one such mail in 24 hours.
    told_by    uuid,
    told_at    timestamptz
);

-- Addresses are compared in lower case, whatever case they were typed in.
CREATE UNIQUE INDEX users_email_key ON users (lower(email));

-- Reports choose users by day.
CREATE INDEX users_created_at_idx ON users (created_at);

-- What became of each registration, kept for ever: the same id asked again, even after a
-- month in a dead-letter queue, gets the same answer.
CREATE TABLE registrations (
    registration_id uuid        PRIMARY KEY,
    outcome         text        NOT NULL CHECK (outcome IN ('stored', 'duplicate')),

    -- No foreign key: the answer stays the same after the user is deleted.
    user_id         bigint      NOT NULL,

    received_at     timestamptz NOT NULL,
    stored_at       timestamptz NOT NULL DEFAULT now()
);
