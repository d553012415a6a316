-- One row for each mail, and one for each attempt to send it.

CREATE TABLE notification_logs (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,

    -- The identity of the mail: the same message is never two rows.
    message_id        uuid        NOT NULL CONSTRAINT notification_logs_message_id_key UNIQUE,

    -- Cleared when the user is deleted; the record of the mail stays.
    user_id           bigint      CONSTRAINT notification_logs_user_id_fkey
                                  REFERENCES users (id) ON DELETE SET NULL,

    -- No foreign key: any program may ask for a mail and name what it likes.
    registration_id   uuid,

    recipient         text        NOT NULL CHECK (char_length(recipient) BETWEEN 1 AND 254),
    notification_type text        NOT NULL CHECK (char_length(notification_type) BETWEEN 1 AND 100),
    status            text        NOT NULL CHECK (status IN
                      ('sending', 'sent', 'deferred', 'failed', 'unsure', 'suppressed')),
    attempts          integer     NOT NULL DEFAULT 0,

    -- The last lease; while sending and until lease_until, its holder alone may send.
    lease_id          uuid,
    lease_until       timestamptz,

    error_message     text,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    sent_at           timestamptz
);

-- The journey of a registration; and deleting a user must not read the whole table.
CREATE INDEX notification_logs_registration_id_idx ON notification_logs (registration_id)
    WHERE registration_id IS NOT NULL;
CREATE INDEX notification_logs_user_id_idx ON notification_logs (user_id)
    WHERE user_id IS NOT NULL;

-- An attempt that stays 'sending' ended without a word: its sender was killed.
CREATE TABLE notification_attempts (
    notification_id bigint      NOT NULL REFERENCES notification_logs (id) ON DELETE CASCADE,
    attempt         integer     NOT NULL,
    lease_id        uuid        NOT NULL,
    status          text        NOT NULL CHECK (status IN
                    ('sending', 'sent', 'deferred', 'failed', 'unsure')),

    -- The mail server's reply (RFC 5321, 4.2).
    reply_code      integer,
    reply_text      text        NOT NULL DEFAULT '',

    started_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    PRIMARY KEY (notification_id, attempt)
);
