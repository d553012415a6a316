-- Mails that people send again, mails that come back, and addresses that get no more of them.

-- 'bounced': the mail server had taken the mail (or may have), and it came back.
ALTER TABLE notification_logs
    DROP CONSTRAINT notification_logs_status_check,
    ADD  CONSTRAINT notification_logs_status_check CHECK (status IN
         ('sending', 'sent', 'deferred', 'failed', 'unsure', 'suppressed', 'bounced'));

ALTER TABLE notification_logs
    -- What was to be said, where the template does not say the same to everybody: without it
    -- nobody could write the mail a second time.
    ADD COLUMN content jsonb,

    -- Somebody wants this mail sent again, whatever its status; the next claim clears it.
    ADD COLUMN resend_asked_at timestamptz;

-- The mails of a day. By blocks, since a mail's row stays where it was written: that costs the
-- insertion nothing, while an index on the status would make each update one of all indexes.
CREATE INDEX notification_logs_created_at_idx ON notification_logs
    USING brin (created_at) WITH (pages_per_range = 16, autosummarize = on);

-- Who had a mail sent again, when and why.
CREATE TABLE notification_resends (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    notification_id bigint      NOT NULL REFERENCES notification_logs (id) ON DELETE CASCADE,
    asked_at        timestamptz NOT NULL DEFAULT now(),
    asked_by        text        NOT NULL DEFAULT '',
    reason          text        NOT NULL DEFAULT '',

    -- How the mail stood then.
    status_before   text        NOT NULL,
    forced          boolean     NOT NULL
);

CREATE INDEX notification_resends_notification_id_idx ON notification_resends (notification_id);

-- What mail servers reported later (RFC 3464), each report once.
CREATE TABLE notification_bounces (
    -- Follows from the report's bytes: the same report again is the same row.
    bounce_id       uuid        PRIMARY KEY,

    -- Cleared never, empty where the report names no mail of ours.
    notification_id bigint      REFERENCES notification_logs (id) ON DELETE CASCADE,

    action          text        NOT NULL CHECK (action IN
                    ('failed', 'delayed', 'delivered', 'relayed', 'expanded')),

    -- RFC 3463, such as 5.1.1.
    status          text        NOT NULL,
    diagnostic      text        NOT NULL DEFAULT '',
    reported_at     timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX notification_bounces_notification_id_idx ON notification_bounces (notification_id)
    WHERE notification_id IS NOT NULL;

-- Addresses that get no more mails, until somebody removes them here.
CREATE TABLE suppressed_addresses (
    -- In lower case.
    address         text        PRIMARY KEY CHECK (char_length(address) BETWEEN 1 AND 320),
    bounce_id       uuid        NOT NULL,
    status          text        NOT NULL,
    diagnostic      text        NOT NULL DEFAULT '',
    suppressed_at   timestamptz NOT NULL DEFAULT now()
);
