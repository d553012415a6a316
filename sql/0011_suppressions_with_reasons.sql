-- Why an address gets no more mails, and until when: a full mailbox is emptied again.

ALTER TABLE suppressed_addresses
    -- What was in the way, as common/mail_status.py names it.
    ADD COLUMN reason     text NOT NULL DEFAULT 'no_such_address'
                          CHECK (char_length(reason) BETWEEN 1 AND 50),

    -- When it gets mails again by itself; never, where empty.
    ADD COLUMN expires_at timestamptz;

-- Until now every 5.y.z closed an address for ever. Those that did not say that the address is dead
-- end here; what their reports said stays on record.
UPDATE suppressed_addresses
   SET reason = 'unknown',
       expires_at = now()
 WHERE status !~ '^5\.(1\.(0|1|2|3|4|6|10)|2\.1|7\.17)$';

CREATE VIEW suppressions_in_force AS
    SELECT address, bounce_id, status, diagnostic, suppressed_at, reason, expires_at
      FROM suppressed_addresses
     WHERE expires_at IS NULL
        OR expires_at > now();
